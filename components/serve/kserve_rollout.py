"""A model comes to serve at an endpoint step by step, and what served before serves on until it does.

The challenger's predictors start beside the champion's and get no request but its sample request, which they must
answer with the expected scores. Then they get a share of the requests, if one is asked for, and then all. Whatever
fails on the way, the champion's predictor is applied again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from narrowcast.components.serve import client, kserve_pods
from narrowcast.components.serve.kserve_api import Cluster, ClusterError
from narrowcast.components.serve.kserve_settings import KServeSettings
from narrowcast.components.serve.kserve_spec import (
    CANARY,
    REVISION,
    Body,
    Predictor,
    revision,
    service,
    with_canary,
)
from narrowcast.components.serve.process import last_words
from narrowcast.errors import NarrowcastError

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

POLL_SECONDS = 2.0
KNATIVE_REVISION = "serving.knative.dev/revision"
ROUNDS = 5
"""In which all pods are replaced, a quarter at a time, and a little more."""
SHARE_SECONDS = 60.0
"""For a share to be found where requests are routed."""
T = TypeVar("T")


class ChallengerError(NarrowcastError):
    """The new model will not do."""


class OvertakenError(ClusterError):
    """Somebody else changed the InferenceService meanwhile: it is theirs now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Challenger:
    """The new model: its predictor, the name and md5 that it answers with, and its sample request."""

    predictor: Predictor
    model: str
    md5: str
    sample: dict[str, Any]


class Rollout:
    """One model's way to an endpoint. Every method raises ChallengerError where the model is at fault, ClusterError
    where the cluster is."""

    def __init__(self, cluster: Cluster, settings: KServeSettings, challenger: Challenger) -> None:
        self.cluster, self.settings, self.challenger = cluster, settings, challenger
        self._generation = 0

    def start(self) -> str:
        """Serve where nothing served. Returns the endpoint's URL."""
        self._apply(service(self.cluster.endpoint, self.settings.mode, self.challenger.predictor))
        self._smoke(self._ready(self.challenger.predictor, self.settings.min_replicas))
        return self._url()

    def succeed(self, champion: Predictor) -> str:
        """Serve in the champion's place. Returns the endpoint's URL."""
        new, least = self.challenger.predictor, self.settings.min_replicas
        self._share(champion, 0)
        self._smoke(self._ready(new, 1))
        for percent in self.settings.canary_percents:
            self._share(champion, percent)
            self._until(partial(self._is_routed, wanted=new, percent=percent), SHARE_SECONDS, _no_share)
            self._hold()
        _say(f"all requests to {revision(new)}")
        if self.settings.mode == "Standard":  # the canary keeps its share until the champion's pods are replaced
            last = max((0, *self.settings.canary_percents))
            self._apply(with_canary(self.cluster.endpoint, "Standard", new, new, last))
            self._ready(new, least, percent=100)
        else:
            self._ready(new, least)
        self._apply(service(self.cluster.endpoint, self.settings.mode, new))
        self._ready(new, least, percent=100)
        return self._url()

    def confirm(self) -> None:
        """The challenger is what serves: end what else was begun, and see that it answers."""
        self.restore(self.challenger.predictor)
        self._smoke(self._ready(self.challenger.predictor, self.settings.min_replicas))

    def restore(self, champion: Predictor | None, *, wait: bool = True) -> None:
        """Have the champion serve all requests; without one, have nothing serve.

        In mode Knative the revision that was rolled out last serves until the champion's own is ready; without `wait`
        it goes on to.
        """
        endpoint, mode = self.cluster.endpoint, self.settings.mode
        if champion is None:
            self._apply(service(endpoint, mode, self.challenger.predictor, stopped=True))
            return
        if mode == "Knative":
            live = (self.cluster.find() or {}).get("spec", {}).get("predictor", {})
            if "canaryTrafficPercent" in live or live.get("labels") != champion["labels"]:
                self._apply(with_canary(endpoint, mode, champion, champion, 0))
                if not wait:
                    return
                self._ready(champion, self.settings.min_replicas, percent=0)
        self._apply(service(endpoint, mode, champion))

    def _share(self, champion: Predictor, percent: int) -> None:
        new = self.challenger.predictor
        _say(f"{percent} % of the requests to {revision(new)}, the rest to {revision(champion)}")
        self._apply(with_canary(self.cluster.endpoint, self.settings.mode, champion, new, percent))

    def _apply(self, body: Body) -> None:
        self._generation = self.cluster.apply(body)["metadata"]["generation"]

    def _live(self) -> Body:
        """The InferenceService as it is now. Raises OvertakenError where that is not as this rollout left it."""
        live = self.cluster.find()
        if not live or live["metadata"]["generation"] != self._generation:
            raise OvertakenError(
                f"{self.cluster} was changed or deleted by somebody else meanwhile and is left to them; see what "
                "serves, and run again"
            )
        return live

    def _until(self, done: Callable[[Body], T | None], seconds: float, late: Callable[[Body], NarrowcastError]) -> T:
        """What `done` returns of the InferenceService once it is true; raises what `late` returns after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            live = self._live()
            if found := done(live):
                return found
            if time.monotonic() > deadline:
                raise late(live)
            time.sleep(POLL_SECONDS)

    def _ready(self, wanted: Predictor, least: int, *, percent: int | None = None) -> list["V1Pod"]:
        """The ready pods of a predictor, at least `least`, once it has `percent` of the requests.

        Raises ChallengerError as soon as a pod will not come up, or after `ready_seconds` for each round of pods.
        """
        seconds = self.settings.ready_seconds * (ROUNDS if percent == 100 else 1)

        def done(live: Body) -> list["V1Pod"] | None:
            pods = self._pods(live, wanted)
            for pod in pods:
                if (ailment := kserve_pods.ailment(pod)) and ailment.final:
                    raise ChallengerError(self._told(pod, ailment))
            ready = [pod for pod in pods if kserve_pods.is_ready(pod)]
            has_share = percent is None or self._is_routed(live, wanted, percent)
            return ready if len(ready) >= least and has_share else None

        def late(live: Body) -> ChallengerError:
            pods = self._pods(live, wanted)
            ailments = [self._told(pod, found) for pod in pods if (found := kserve_pods.ailment(pod))]
            return ChallengerError(
                f"{sum(map(kserve_pods.is_ready, pods))} of {least} pods were ready after {seconds} s: "
                + ("; ".join(ailments) or _conditions(live) or "see the events of the pods, or raise ready_seconds")
            )

        return self._until(done, seconds, late)

    def _pods(self, live: Body, wanted: Predictor) -> list["V1Pod"]:
        """The pods that run a predictor; in mode Knative those of the newest revision, as an older one may be equal."""
        labels = {REVISION: revision(wanted)}
        if self.settings.mode == "Knative":
            labels[KNATIVE_REVISION] = _component(live).get("latestCreatedRevision", "")
        return self.cluster.pods(**labels)

    def _is_routed(self, live: Body, wanted: Predictor, percent: int) -> bool:
        """Whether that share of the requests is routed to the predictor by now."""
        if self.settings.mode == "Knative":
            component = _component(live)
            newest = component.get("latestReadyRevision")
            shares = [to.get("percent") for to in component.get("traffic", []) if to.get("revisionName") == newest]
            return newest == component.get("latestCreatedRevision") and percent in shares
        endpoint = self.cluster.endpoint
        if percent == 100:
            pods = self.cluster.pods(app=f"isvc.{endpoint}-predictor")
            news = {REVISION: revision(wanted)}.items()
            return bool(pods) and all(kserve_pods.is_ready(pod) and news <= pod.metadata.labels.items() for pod in pods)
        rules = (self.cluster.route() or {}).get("spec", {}).get("rules", [])
        backends = [
            to for rule in rules for to in rule["backendRefs"] if to["name"] == f"{endpoint}-{CANARY}-predictor"
        ]
        return bool(backends) and all(to.get("weight") == percent for to in backends)

    def _hold(self) -> None:
        """Let the challenger serve its share for a while. Raises ChallengerError where a predictor fails over it."""
        new = self.challenger.predictor
        before = {pod.metadata.name: kserve_pods.restarts(pod) for pod in self._pods(self._live(), new)}
        deadline = time.monotonic() + self.settings.canary_seconds
        while time.monotonic() < deadline:
            for pod in self._pods(self._live(), new):
                if kserve_pods.restarts(pod) > before.get(pod.metadata.name, 0):
                    raise ChallengerError(f"pod {pod.metadata.name} was started again while it served: see its log")
            time.sleep(POLL_SECONDS)
        self._smoke(self._ready(new, 1))

    def _smoke(self, pods: list["V1Pod"]) -> None:
        """Send the sample request to the pods themselves, in turn, and hold the scores against the expected ones."""
        challenger = self.challenger
        expected, tolerance = challenger.sample["expected"], challenger.sample["tolerance"]
        for number in range(max(self.settings.smoke_requests, len(pods))):
            pod = pods[number % len(pods)]
            try:
                answer = client.infer(kserve_pods.url(pod), challenger.model, challenger.sample["request"]["inputs"])
            except NarrowcastError as error:
                raise ChallengerError(f"pod {pod.metadata.name}: {error}") from None
            scores = client.probabilities(answer)
            if answer.get("model_version") != challenger.md5:
                raise ChallengerError(
                    f"pod {pod.metadata.name} answers with the model {answer.get('model_version')}, not with "
                    f"{challenger.md5}: see what lies at the address in its STORAGE_URI"
                )
            apart = max((abs(a - b) for a, b in zip(scores, expected, strict=False)), default=0.0)
            if len(scores) != len(expected) or not apart <= tolerance:
                raise ChallengerError(
                    f"pod {pod.metadata.name} scores its sample request with {scores}, which should be {expected} "
                    f"within {tolerance}: the image {self.settings.image} computes otherwise than the one that packed "
                    "the model"
                )

    def _url(self) -> str:
        """The endpoint's URL, once KServe says that the endpoint is ready."""

        def done(live: Body) -> str | None:
            status = live.get("status", {})
            ready = any(
                found["type"] == "Ready" and found["status"] == "True" for found in status.get("conditions", [])
            )
            return (status.get("url") or status.get("address", {}).get("url")) if ready else None

        return self._until(
            done,
            self.settings.ready_seconds,
            lambda live: ChallengerError(f"the pods are ready, but not the endpoint: {_conditions(live)}"),
        )

    def _told(self, pod: "V1Pod", ailment: kserve_pods.Ailment) -> str:
        if not ailment.container:
            return ailment.sentence
        name = pod.metadata.name
        log = self.cluster.log(name, ailment.container, previous=True) or self.cluster.log(
            name, ailment.container, previous=False
        )
        return f"{ailment.sentence}: {last_words(log)}"


def _no_share(_: Body) -> ClusterError:
    return ClusterError(
        f"the new model got no share of the requests within {SHARE_SECONDS:.0f} s: in mode Standard KServe shares them "
        "by the Gateway API alone, in versions after 0.20; leave kserve.canary_percents empty, or use mode Knative"
    )


def _component(live: Body) -> dict[str, Any]:
    """What Knative says of the predictor's revisions."""
    component: dict[str, Any] = live.get("status", {}).get("components", {}).get("predictor", {})
    return component


def _conditions(live: Body) -> str:
    """What KServe says is not well."""
    told = [
        " ".join(filter(None, (found["type"], found.get("reason"), found.get("message"))))
        for found in live.get("status", {}).get("conditions", [])
        if found["status"] != "True" and (found.get("reason") or found.get("message"))
    ]
    return "KServe says " + "; ".join(told) if told else ""


def _say(what: str) -> None:
    print(f"deploy: {what}", flush=True)
