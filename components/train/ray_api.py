"""The calls on the Kubernetes API by which a step makes a RayJob, follows it and takes it away.

Objects are plain mappings, as the API writes them. What may pass by itself (no answer, a busy server) is tried again;
what does not is a NarrowcastError.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, watch
from kubernetes.client.rest import ApiException

from narrowcast.components.train.ray_manifest import GROUP, INSTANCE, PLURAL, VERSION
from narrowcast.errors import NarrowcastError
from narrowcast.kubernetes_api import configuration

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LOOK_SECONDS = 10
"""How long a watch waits for a change."""
PATIENCE_SECONDS = 300
"""How long the API may give no answer."""
PAUSE_SECONDS = 0.5
"""Before what has failed is asked for again; twice as long each time it fails once more, up to MOST_PAUSE_SECONDS."""
MOST_PAUSE_SECONDS = 20
TIMEOUT = (5, LOOK_SECONDS + 20)
"""Seconds until a connection stands, and between two parts of an answer."""
LOG_TIMEOUT = (5, 120)

Object = dict[str, Any]


def own_namespace() -> str:
    """The namespace of this pod. Raises NarrowcastError where this is no pod."""
    try:
        return (ACCOUNT / "namespace").read_text().strip()
    except OSError:
        raise NarrowcastError(
            "parameter 'ray': namespace is empty, and this is no pod that has one; give it a name"
        ) from None


class RayJobs:
    """The RayJobs of one namespace, and their pods. Raises NarrowcastError where no API is configured."""

    def __init__(self, namespace: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.namespace = namespace
        self.patience_seconds = patience_seconds
        settings = configuration(
            "run the step in a pod whose service account has a token, set KUBECONFIG, or leave the parameter 'ray' "
            "empty to train here"
        )
        self._client = client.ApiClient(settings)
        self._jobs = client.CustomObjectsApi(self._client)
        self._core = client.CoreV1Api(self._client)

    def create(self, body: Object) -> Object | None:
        """The job as it was stored, or None where one of its name is there."""
        try:
            return self._ask("create", lambda: self._jobs.create_namespaced_custom_object(*self._kind, body, **_TIMED))
        except ApiException as error:
            if error.status == 409:
                return None
            raise self._refused("create", error) from None

    def get(self, name: str) -> Object | None:
        """The job, or None where there is none."""
        try:
            return self._ask("get", lambda: self._jobs.get_namespaced_custom_object(*self._kind, name, **_TIMED))
        except ApiException as error:
            if error.status == 404:
                return None
            raise self._refused("get", error) from None

    def delete(self, name: str) -> None:
        """Take the job away, and in the background its cluster; none there is no error."""
        try:
            self._ask(
                "delete",
                lambda: self._jobs.delete_namespaced_custom_object(
                    *self._kind, name, propagation_policy="Background", **_TIMED
                ),
            )
        except ApiException as error:
            if error.status != 404:
                raise self._refused("delete", error) from None

    def follow(self, job: Object) -> Iterator[Object | None]:
        """The job now, after each change, and after LOOK_SECONDS without one; at last None, once it is gone."""
        current: Object | None = job
        while current:
            yield current
            found = self._next(current)
            current = found if found and found["metadata"]["uid"] == job["metadata"]["uid"] else None
        yield None

    def _next(self, job: Object) -> Object | None:
        """After the job's next change, or as it is. What ends a watch early (410, no answer) is asked for anew."""
        try:
            for event in watch.Watch().stream(
                self._jobs.list_namespaced_custom_object,
                *self._kind,
                field_selector=f"metadata.name={job['metadata']['name']}",
                resource_version=job["metadata"]["resourceVersion"],
                timeout_seconds=LOOK_SECONDS,
                _request_timeout=TIMEOUT,
            ):
                if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                    changed: Object = event["raw_object"]
                    return None if event["type"] == "DELETED" else changed
            return job
        except ApiException as error:
            if error.status in (401, 403):
                raise self._refused("watch", error) from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            pass  # a connection that ended in the midst of a line, too
        time.sleep(PAUSE_SECONDS)
        return self.get(job["metadata"]["name"])

    def pods(self, name: str) -> list[Object]:
        """The job's pods."""
        return self._list(
            "pods",
            lambda: self._core.list_namespaced_pod(
                self.namespace, label_selector=f"{INSTANCE}={name}", _preload_content=False, **_TIMED
            ),
        )

    def warnings(self, name: str) -> list[str]:
        """What Kubernetes warns of an object of this name, the newest last."""
        events = self._list(
            "events",
            lambda: self._core.list_namespaced_event(
                self.namespace,
                field_selector=f"involvedObject.name={name},type=Warning",
                _preload_content=False,
                **_TIMED,
            ),
        )
        return [
            event.get("message") or "" for event in sorted(events, key=lambda event: event.get("lastTimestamp") or "")
        ]

    def log(self, pod: str) -> Iterator[tuple[str, str]]:
        """The lines that a pod prints, each after its time, to the end of its log or of the connection."""
        response = self._core.read_namespaced_pod_log(
            pod, self.namespace, follow=True, timestamps=True, _preload_content=False, _request_timeout=LOG_TIMEOUT
        )
        try:
            for line in watch.watch.iter_resp_lines(response):
                time_printed, _, text = line.partition(" ")
                yield time_printed, text
        finally:
            response.close()
            response.release_conn()

    @property
    def _kind(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, PLURAL

    def _list(self, what: str, call: Callable[[], Any]) -> list[Object]:
        try:
            items: list[Object] = json.loads(self._ask("list", call).data)["items"]
            return items
        except ApiException as error:
            raise self._refused("list", error, what) from None

    def _ask(self, verb: str, call: Callable[[], Any]) -> Any:
        """What `call` gives; no answer and a busy server are tried again, after longer and longer pauses."""
        given_up = time.monotonic() + self.patience_seconds
        pause = PAUSE_SECONDS
        while True:
            try:
                return call()
            except ApiException as error:
                if error.status != 429 and not 500 <= error.status <= 599:
                    raise
                reason = f"status {error.status} {error.reason}"
            except (urllib3.exceptions.HTTPError, OSError) as error:
                reason = " ".join(str(error).split())[:200]
            if time.monotonic() + pause > given_up:
                raise NarrowcastError(
                    f"the Kubernetes API does not answer ({verb} in namespace '{self.namespace}': {reason}): "
                    f"it was asked for {self.patience_seconds:.0f} s; look at the API server, and run the step again"
                )
            time.sleep(pause)
            pause = min(2 * pause, MOST_PAUSE_SECONDS)

    def _refused(self, verb: str, error: ApiException, what: str = f"{PLURAL}.{GROUP}") -> NarrowcastError:
        """The sentence for an answer that will not change."""
        said, where = _message(error), f"namespace '{self.namespace}'"
        if error.status == 403 and "exceeded quota" in said:
            return NarrowcastError(
                f"the quota of {where} is used up ({said}): wait for other jobs to end, raise the quota, or lower "
                "num_workers or the sizes in 'ray'"
            )
        if error.status == 403 and "being terminated" not in said:
            return NarrowcastError(
                f"this step may not {verb} {what} in {where} ({said}): run it as a service account with the role "
                "narrowcast-launch, which `kubectl apply -k k8s/overlays/minimal` makes"
            )
        if error.status == 401:
            return NarrowcastError(f"the Kubernetes API knows no such account ({said}): renew the account's token")
        if error.status == 404 and "namespaces" in said:
            return NarrowcastError(f"{said}: make it, or name another in 'ray': namespace")
        if error.status == 404:
            return NarrowcastError(
                "the cluster knows no RayJobs (ray.io/v1): install KubeRay, see k8s/README.md, or leave the parameter "
                "'ray' empty to train in the step"
            )
        return NarrowcastError(f"the Kubernetes API refused to {verb} {what} in {where} ({error.status}: {said})")


_TIMED: Any = {"_request_timeout": TIMEOUT}


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (KeyError, TypeError, ValueError):
        return " ".join(str(error.body or error.reason).split())[:300]
