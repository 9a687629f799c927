"""Where Kubernetes' API is."""

from typing import TYPE_CHECKING

from narrowcast.errors import NarrowcastError

if TYPE_CHECKING:
    from kubernetes.client import Configuration


def configuration(mend: str) -> "Configuration":
    """The client's settings: those that a pod is given, or else kubectl's. No request is tried again by itself.

    Raises NarrowcastError that ends with `mend` where there are neither.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            config.load_kube_config(client_configuration=settings)
    except (config.ConfigException, OSError) as error:
        raise NarrowcastError(f"no Kubernetes API is known here ({error}): {mend}") from None
    settings.retries = False
    return settings
