"""What a deployment goes by, and what it says in the end, wherever the model is to serve."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, write_json, writing_directory


class Serving(Protocol):
    """What serves at an endpoint."""

    @property
    def url(self) -> str: ...

    @property
    def model_md5(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """The content of `deployment.json`: `url` and `model_md5` are those of what serves in the end."""

    endpoint: str
    deployed: bool
    kept_champion: bool
    url: str | None
    model_md5: str | None
    reason: str

    def save(self, target: str | os.PathLike[str]) -> None:
        result = asdict(self)
        with writing_directory(target) as folder:
            write_json(folder / "deployment.json", result)
            metrics = {"deployed": float(self.deployed)}
            StepRecord(step="deploy", rows_in=0, rows_out=0, metrics=metrics, details=result).save(folder)


def refusal(evaluation: dict[str, Any], endpoint: str) -> str | None:
    """Why nothing is to be deployed: no endpoint is named (as when a run is reproduced), or a gate failed."""
    if not endpoint:
        return "no endpoint was named, so nothing was to be deployed"
    if not evaluation["passed"]:
        return f"gates failed: {'; '.join(gate['sentence'] for gate in evaluation['gates'] if not gate['passed'])}"
    return None


def deployment(
    endpoint: str,
    champion: Serving | None,
    refused: str | None,
    replace: Callable[[], Serving],
    failure: type[NarrowcastError] = NarrowcastError,
) -> Deployment:
    """How a deployment ends: refused, or `replace` returns what serves then, which may be the champion.

    Where `replace` raises a `failure`, the new model is at fault: the champion stays, and `reason` says why.
    """
    serving, reason = champion, refused
    if reason is None:
        try:
            serving = replace()
            reason = "every gate passed and the server answered its sample request"
            if serving == champion:
                reason = f"this model already serves at {serving.url}"
        except failure as error:
            reason = f"the new model does not answer: {error}"
    deployed = serving != champion
    return Deployment(
        endpoint=endpoint,
        deployed=deployed,
        kept_champion=champion is not None and not deployed,
        url=serving.url if serving else None,
        model_md5=serving.model_md5 if serving else None,
        reason=reason,
    )
