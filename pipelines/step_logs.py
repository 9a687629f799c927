"""What the steps of a run print, from the logs of their pods.

Kubeflow Pipelines' own API reads a log only by its pod's name, which it does not tell, and does not follow one. So the
pods are asked for from Kubernetes, by the label that KFP's server puts on every pod of a run.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from narrowcast.errors import NarrowcastError, nearest
from narrowcast.kubernetes_api import configuration
from narrowcast.pipelines import cluster_runs
from narrowcast.pipelines.cluster_runs import Run
from narrowcast.pipelines.kfp_client import KFP

LABEL = "pipeline/runid"
NODE = "workflows.argoproj.io/node-name"
CONTAINER = "main"
TIMEOUT_SECONDS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """A pod that runs a step's code or, with `driver`, prepares it; a step that is tried again has several."""

    name: str
    step: str
    driver: bool
    started: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line of a step's log."""

    step: str
    pod: str
    text: str


def logs(run: Run, namespace: str, step: str | None = None) -> Iterator[Line]:
    """What a run's steps, or one of them, have printed until now, in the order in which their pods were made.

    A step that never came to run has its driver's log, which says why. Raises NarrowcastError where there are no pods.
    """
    core = _core()
    pods = [pod for pod in _pods(core, namespace, run, step) if pod.started]
    shown = [pod for pod in pods if not pod.driver or (step and all(p.driver for p in pods))]
    if not shown:
        what = f"step '{step}' of run" if step else "run"
        raise NarrowcastError(
            f"no pod of {what} {run.run_id} in namespace {namespace} has a log: it has not started, was taken from the "
            f"cache, or its pods are gone; what KFP archived is at {run.url}"
        )
    for pod in shown:
        yield from _lines(core, namespace, pod, follow=False)


def follow(kfp: KFP, run: Run, namespace: str, step: str) -> Iterator[Line]:
    """What a step prints, as it prints it, until the step or the run has ended; later tries are followed, too."""
    core, shown = _core(), set[str]()
    while True:
        for pod in _pods(core, namespace, run, step):
            if pod.started and not pod.driver and pod.name not in shown:
                shown.add(pod.name)
                yield from _lines(core, namespace, pod, follow=True)
        if run.ended or any(s.name == step and s.state in cluster_runs.ENDED for s in run.steps):
            if not shown:  # its driver's log, or why there is none
                yield from logs(run, namespace, step)
            return
        time.sleep(cluster_runs.POLL_SECONDS)
        run = cluster_runs.get_run(kfp, run.run_id)


def _core() -> Any:
    from kubernetes import client

    settings = configuration("logs are read from it; set KUBECONFIG")
    return client.CoreV1Api(client.ApiClient(settings))


def _pods(core: Any, namespace: str, run: Run, step: str | None) -> list[Pod]:
    names = [known.name for known in run.steps]
    if step and step not in names:
        raise NarrowcastError(f"run {run.run_id} has no step '{step}'; {nearest(step, names)}")
    with _sentences(f"listing the pods of run {run.run_id} in namespace {namespace}"):
        found = core.list_namespaced_pod(
            namespace, label_selector=f"{LABEL}={run.run_id}", _request_timeout=TIMEOUT_SECONDS
        ).items
    pods = [_pod(pod) for pod in sorted(found, key=lambda pod: pod.metadata.creation_timestamp)]
    return [pod for pod in pods if pod is not None and (step is None or pod.step == step)]


def _pod(pod: Any) -> Pod | None:
    """Argo names a node by its place in the workflow: `<workflow>.root.<step>.executor`, `...<step>-driver`.

    Whatever may be tried again has the try's number after it, which in a standalone KFP is every part of the name.
    """
    node = (pod.metadata.annotations or {}).get(NODE, "")
    match = re.search(r"\.(?:([^.(]+)(?:\(\d+\))?\.executor(?:\(\d+\))?|([^.]+)-driver(?:\(\d+\))?)$", node)
    if not match:
        return None
    main = next((c for c in pod.status.container_statuses or [] if c.name == CONTAINER), None)
    started = main is not None and (main.state.running is not None or main.state.terminated is not None)
    return Pod(name=pod.metadata.name, step=match[1] or match[2], driver=match[1] is None, started=started)


def _lines(core: Any, namespace: str, pod: Pod, *, follow: bool) -> Iterator[Line]:
    with _sentences(f"reading the log of pod {pod.name}"):
        answer = core.read_namespaced_pod_log(
            pod.name,
            namespace,
            container=CONTAINER,
            follow=follow,
            _preload_content=False,
            _request_timeout=None if follow else TIMEOUT_SECONDS,
        )
        rest = b""
        for part in answer.stream():
            *whole, rest = (rest + part).split(b"\n")
            yield from (Line(step=pod.step, pod=pod.name, text=line.decode(errors="replace")) for line in whole)
        if rest:
            yield Line(step=pod.step, pod=pod.name, text=rest.decode(errors="replace"))


@contextlib.contextmanager
def _sentences(doing: str) -> Iterator[None]:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        mend = {
            401: "log in to the cluster again",
            403: "ask for the rights to list pods and to read pods/log there",
            404: "it is gone by now",
        }.get(error.status, "look at the cluster")
        raise NarrowcastError(f"{doing}: Kubernetes answers {error.status} {error.reason}; {mend}") from None
    except HTTPError as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split()).rpartition(": ")[2]
        raise NarrowcastError(f"{doing}: Kubernetes cannot be reached ({reason}); check kubeconfig") from None
