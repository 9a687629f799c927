"""Experiments: the folders that Kubeflow Pipelines keeps runs and schedules in."""

from narrowcast.errors import NarrowcastError, nearest
from narrowcast.pipelines.kfp_client import KFP, equals


def experiment_id(kfp: KFP, name: str, *, create: bool = False) -> str:
    """The experiment's id; with `create` one that is not there is made.

    Raises NarrowcastError with the nearest name for one that does not exist.
    """
    from kfp_server_api import V2beta1Experiment

    api = kfp.client.experiments
    doing = f"looking for experiment '{name}'"
    found = kfp.call(
        doing, api.experiment_service_list_experiments, filter=equals("display_name", name), **kfp.within
    ).experiments
    if found:
        return str(found[0].experiment_id)
    if create:
        new = V2beta1Experiment(display_name=name, namespace=kfp.namespace)
        made = kfp.call(f"creating experiment '{name}'", api.experiment_service_create_experiment, new)
        return str(made.experiment_id)
    known = [
        e.display_name for e in kfp.pages(doing, api.experiment_service_list_experiments, "experiments", **kfp.within)
    ]
    hint = nearest(name, known) if known else "there is none yet"
    raise NarrowcastError(
        f"no experiment '{name}' at {kfp.host}: {hint}; `narrowcast submit --create-experiment` makes it"
    )
