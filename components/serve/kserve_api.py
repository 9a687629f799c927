"""What the deploy step asks of the Kubernetes API: one endpoint's InferenceService, its pods and its route."""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from narrowcast.components.serve.kserve_spec import GROUP, PLURAL, VERSION, Body
from narrowcast.errors import NarrowcastError
from narrowcast.kubernetes_api import configuration

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

MANAGER = "narrowcast"
"""Owns the fields that the deploy step sets; a field that somebody else set is never taken from them."""
WITHIN = {"_request_timeout": 30}
"""Seconds for one answer."""
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Between attempts, in seconds, while the API is busy or away."""
BUSY = frozenset({429, 500, 502, 503, 504})
LOG_LINES = 50
T = TypeVar("T")


class ClusterError(NarrowcastError):
    """The cluster does not do what it is asked, whatever the model is."""


class MissingKindError(ClusterError):
    """The API has no objects of that kind."""


class Cluster:
    """One endpoint in one namespace. Every method raises ClusterError where the API refuses or does not answer."""

    def __init__(self, namespace: str, endpoint: str) -> None:
        from kubernetes import client

        self.namespace, self.endpoint = namespace, endpoint
        settings = configuration(
            "run the step in a pod whose service account has a token, set KUBECONFIG, or leave the parameter 'kserve' "
            "empty to serve here"
        )
        self._host = settings.host
        applying = client.ApiClient(settings)
        applying.set_default_header("Content-Type", "application/apply-patch+yaml")
        asking = client.ApiClient(settings)
        self._applied, self._objects = client.CustomObjectsApi(applying), client.CustomObjectsApi(asking)
        self._core = client.CoreV1Api(asking)

    def find(self) -> Body | None:
        """The InferenceService as it is now, None where there is none."""
        where = GROUP, VERSION, self.namespace, PLURAL, self.endpoint
        found: Body | None = self._ask("get", lambda: self._objects.get_namespaced_custom_object(*where, **WITHIN))
        return found

    def apply(self, body: Body) -> Body:
        """Make the InferenceService as `body` says, by a server-side apply. Returns it as it is then."""
        where = GROUP, VERSION, self.namespace, PLURAL, self.endpoint
        options = {"field_manager": MANAGER, "field_validation": "Strict", **WITHIN}
        found: Body | None = self._ask(
            "apply", lambda: self._applied.patch_namespaced_custom_object(*where, body, **options)
        )
        if found is None:
            raise ClusterError(f"{self} cannot be made: there is no namespace '{self.namespace}'; make it first")
        return found

    def route(self) -> Body | None:
        """The HTTPRoute that KServe made for the endpoint; None where it made none."""
        where = "gateway.networking.k8s.io", "v1", self.namespace, "httproutes", self.endpoint
        try:
            found: Body | None = self._ask("get", lambda: self._objects.get_namespaced_custom_object(*where, **WITHIN))
        except MissingKindError:
            return None
        return found

    def pods(self, **labels: str) -> list["V1Pod"]:
        """The endpoint's pods with these labels, but those that are ending."""
        wanted = {f"{GROUP}/inferenceservice": self.endpoint, **labels}
        selector = ",".join(f"{key}={value}" for key, value in wanted.items())
        found = self._ask(
            "list pods of", lambda: self._core.list_namespaced_pod(self.namespace, label_selector=selector, **WITHIN)
        )
        return [pod for pod in found.items if not pod.metadata.deletion_timestamp] if found else []

    def log(self, pod: str, container: str, *, previous: bool) -> str:
        """The end of what a container printed, `previous`: before it was started again. Empty where it is gone."""
        options = {"container": container, "previous": previous, "tail_lines": LOG_LINES, **WITHIN}
        try:
            found = self._ask(
                "read logs of", lambda: self._core.read_namespaced_pod_log(pod, self.namespace, **options)
            )
        except ClusterError:  # what it ended with is told all the same
            return ""
        return str(found or "")

    def _ask(self, verb: str, call: Callable[[], T]) -> T | None:
        """What `call` returns; None where the object is not there."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        for pause in (*PAUSES, None):
            try:
                return call()
            except ApiException as error:
                if error.status not in BUSY or pause is None:
                    if error.status == 404 and _told(error).get("reason") == "NotFound":
                        return None
                    raise self._sentence(verb, error) from None
            except HTTPError as error:
                if pause is None:
                    raise ClusterError(
                        f"cannot {verb} {self}: the Kubernetes API at {self._host} does not answer ({error}); run "
                        "again when it does"
                    ) from None
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _sentence(self, verb: str, error: Any) -> ClusterError:
        said = " ".join(str(_told(error).get("message") or error.reason or error.body).split())
        if "admission webhook" in said:
            return ClusterError(f"cannot {verb} {self}: {said}; change what it names under cluster.kserve")
        match error.status:
            case 401:
                mend = "the API knows nobody by this pod's token: give the steps a service account with a token"
            case 403:
                mend = f"{said}; apply k8s/ and run the steps as cluster.service_account (Role narrowcast-deploy)"
            case 404:
                return MissingKindError(
                    f"cannot {verb} {self}: this cluster has no such kind; install KServe first (k8s/README.md)"
                )
            case 409:
                mend = f"{said}; take that change back, or make it under cluster.kserve and let go of the field"
            case 400 | 422:
                mend = f"{said}; it does not fit the version of KServe that is installed, see k8s/README.md"
            case status:
                mend = f"the API answered {status}, {said}; run again when it is well"
        return ClusterError(f"cannot {verb} {self}: {mend}")

    def __str__(self) -> str:
        return f"InferenceService {self.namespace}/{self.endpoint}"


def _told(error: Any) -> dict[str, Any]:
    """The Status that the API answered with; empty where it answered otherwise."""
    try:
        status = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
