"""Endpoints of a cluster: an InferenceService each, its state and its models on object storage.

`<home>/endpoints/<endpoint>/<md5>/` holds a model (`model`, `store`); the present one and the one before it stay.
`<home>/endpoints/<endpoint>.json` is written last, so it names what serves whatever became of a later deployment.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from narrowcast import objects
from narrowcast.components.data.schema import Schema
from narrowcast.components.features.store import fill
from narrowcast.components.serve import kserve_spec
from narrowcast.components.serve.kserve_api import Cluster, ClusterError
from narrowcast.components.serve.kserve_rollout import Challenger, ChallengerError, OvertakenError, Rollout
from narrowcast.components.serve.kserve_settings import KServeSettings
from narrowcast.components.serve.verdict import deployment, refusal
from narrowcast.errors import NarrowcastError
from narrowcast.records import digest, read_json
from narrowcast.settings import build

Location = str | os.PathLike[str]
ENDPOINT = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterEndpoint:
    """What serves under a name: the content of `<home>/endpoints/<name>.json`.

    `predictor` is the InferenceService's, as it was applied; `previous_md5` the model before, whose folder stays.
    """

    name: str
    model: str
    url: str
    namespace: str
    model_path: str
    model_md5: str
    store_path: str
    started: str
    predictor: dict[str, Any]
    previous_md5: str | None


def deploy(
    packed_model: Location,
    feature_store: Location,
    evaluation: Location,
    endpoint: str,
    home: str,
    target: Location,
    *,
    kserve: dict[str, Any],
) -> None:
    """Put a model that passed its gates behind the endpoint, or keep what is there, and write `deployment.json`.

    A model that does not come up, or scores otherwise than expected, is no failure of the step: the champion stays and
    `reason` says why.

    Raises:
        NarrowcastError: where the cluster or object storage is at fault; the champion serves all the same.
    """
    settings: KServeSettings = build(KServeSettings, kserve, "kserve")
    verdict, md5 = read_json(Path(evaluation) / "evaluation.json"), digest(packed_model)
    champion = find_endpoint(home, endpoint) if endpoint else None
    deployment(
        endpoint,
        champion,
        refusal(verdict, endpoint) or _outdated(verdict, champion, md5),
        lambda: replace(endpoint, home, packed_model, feature_store, champion, settings),
        ChallengerError,
    ).save(target)


def find_endpoint(home: str, endpoint: str) -> ClusterEndpoint | None:
    """The endpoint's state, None where nothing was ever deployed. Raises NarrowcastError for a name or home that will
    not do."""
    if not ENDPOINT.fullmatch(endpoint):
        raise NarrowcastError(
            f"'{endpoint}' cannot name an endpoint of a cluster: use at most 40 small letters, digits and '-', a "
            "letter first"
        )
    if not objects.is_remote(home):
        raise NarrowcastError(
            f"home is '{home}', where no predictor finds a model: give an address such as s3://bucket"
        )
    state = objects.join(home, "endpoints", f"{endpoint}.json")
    if not objects.exists(state):
        return None
    try:
        return ClusterEndpoint(**objects.read_json(state))
    except TypeError:
        raise NarrowcastError(f"{state} is not an endpoint's state: delete it and deploy again") from None


def replace(
    endpoint: str,
    home: str,
    packed_model: Location,
    feature_store: Location,
    champion: ClusterEndpoint | None,
    settings: KServeSettings,
) -> ClusterEndpoint:
    """Serve a packed model at the endpoint, asking no gate; where it already serves, what is left of others ends.

    Redis is given the feature store's values again where it has lost them.

    Raises:
        ChallengerError: where the model does not answer as it should.
        NarrowcastError: where the cluster or object storage is at fault. The champion then serves as before, in both
            cases.
    """
    fill(Path(feature_store))
    md5, folder = digest(packed_model), objects.join(home, "endpoints", endpoint)
    address = objects.join(folder, md5)
    model = Schema.load(Path(packed_model) / "schema.yaml").name
    challenger = Challenger(
        predictor=kserve_spec.predictor(settings, model, address),
        model=model,
        md5=md5,
        sample=read_json(Path(packed_model) / "sample_request.json"),
    )
    cluster = Cluster(settings.namespace, endpoint)
    serving = champion if _is_there(cluster, folder) else None
    rollout = Rollout(cluster, settings, challenger)
    if serving and serving.predictor == challenger.predictor:
        rollout.confirm()
        return serving
    stay = {champion.model_md5, champion.previous_md5} if champion else set()
    if not champion or champion.model_md5 != md5:
        objects.put(packed_model, objects.join(address, "model"))
        objects.put(feature_store, objects.join(address, "store"))
    before = serving.predictor if serving else None
    try:
        with _or_back(rollout, before):
            url = rollout.succeed(before) if before else rollout.start()
            new = ClusterEndpoint(
                name=endpoint,
                model=model,
                url=url,
                namespace=settings.namespace,
                model_path=objects.join(address, "model"),
                model_md5=md5,
                store_path=objects.join(address, "store"),
                started=datetime.now(UTC).isoformat(timespec="seconds"),
                predictor=challenger.predictor,
                previous_md5=_previous(champion, md5),
            )
            objects.write_json(f"{folder}.json", asdict(new))
    except ChallengerError:
        if md5 not in stay:
            objects.delete(address)
        raise
    for old in set(objects.names(folder)) - {md5, new.previous_md5}:  # of deployments that were cut short, too
        objects.delete(objects.join(folder, old))
    return new


def _previous(champion: ClusterEndpoint | None, md5: str) -> str | None:
    """The model before `md5`, which may be the champion's own, served anew by other settings."""
    if champion and champion.model_md5 == md5:
        return champion.previous_md5
    return champion.model_md5 if champion else None


def _outdated(verdict: dict[str, Any], champion: ClusterEndpoint | None, md5: str) -> str | None:
    """Why a verdict counts no longer: the model was judged against another one than serves by now."""
    serving = champion.model_md5 if champion else None
    if serving in {md5, verdict["champion_md5"]}:
        return None
    return (
        f"the model was judged against {verdict['champion_md5'] or 'nothing'}, but {serving or 'nothing'} serves by "
        "now: run again, so that it is judged against that"
    )


def _is_there(cluster: Cluster, folder: str) -> bool:
    """Whether the InferenceService runs something. Raises ClusterError for one that is none of this home's."""
    live = cluster.find()
    if not live:
        return False
    if live["metadata"].get("deletionTimestamp"):
        raise ClusterError(f"{cluster} is being deleted: run again when it is gone")
    if not kserve_spec.storage_address(live["spec"]["predictor"]).startswith(f"{folder}/"):
        raise ClusterError(
            f"{cluster} serves no model of {folder}: choose another endpoint, or delete that InferenceService"
        )
    return kserve_spec.STOP not in live["metadata"].get("annotations", {})


@contextlib.contextmanager
def _or_back(rollout: Rollout, champion: kserve_spec.Predictor | None) -> Iterator[None]:
    """The champion serves again if the block fails, or is ended by SIGTERM as when the run is cancelled."""
    with _terminable():
        try:
            yield
        except OvertakenError:
            raise
        except BaseException as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is begun now takes less than the pod is given
            try:
                rollout.restore(champion, wait=isinstance(error, Exception))
            except NarrowcastError as second:
                if str(second) == str(error):  # refused like the first request, so that nothing was begun
                    raise error from None
                said = f"what served before could not be applied again ({second}): deploy again, which does it"
                if isinstance(error, NarrowcastError):
                    raise type(error)(f"{error}; and {said}") from None
                print(f"error: {said}", file=sys.stderr, flush=True)
            raise


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block by an exception."""

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
