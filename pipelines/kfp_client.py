"""The connection to Kubeflow Pipelines: every failure is one sentence."""

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from narrowcast.errors import NarrowcastError

TIMEOUT_SECONDS = (10, 60)
"""To connect, and to wait for an answer."""
PAGE_SIZE = 100
TOKEN = "KFP_EXISTING_TOKEN"
"""The variable that kfp's own command line reads a token from."""
NO_HOST = (
    "no address of Kubeflow Pipelines: set cluster.host in params.yaml, give --host, or set KF_PIPELINES_ENDPOINT; "
    "`kubectl port-forward --namespace kubeflow svc/ml-pipeline 8888` gives http://localhost:8888"
)


class KFPError(NarrowcastError):
    """Kubeflow Pipelines did not do what it was asked. `status` is HTTP's, 0 where there was no answer."""

    def __init__(self, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class KFP:
    """A server that has answered. `namespace` is None where all users share one, as in a standalone installation."""

    client: Any
    host: str
    namespace: str | None

    @property
    def within(self) -> dict[str, Any]:
        """The option of a list that keeps to the user's namespace, where there are several."""
        return {"namespace": self.namespace} if self.namespace else {}

    def call(self, doing: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What a method of the generated API answers. Raises KFPError that begins with `doing`."""
        return _call(self.client, self.host, doing, method, *arguments, **options)

    def pages(
        self, doing: str, method: Callable[..., Any], items: str, *, page_size: int = PAGE_SIZE, **options: Any
    ) -> Iterator[Any]:
        """Every item of a list, over all its pages; `items` names the answer's attribute."""
        token = ""
        while True:
            page = self.call(doing, method, page_token=token, page_size=page_size, **options)
            yield from getattr(page, items) or []
            token = page.next_page_token
            if not token:
                return

    def link(self, kind: str, name: str) -> str:
        """Where the web page shows a run or a recurring run."""
        page = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or self.host
        return f"{page.rstrip('/')}/#/{kind}/details/{name}"


def equals(key: str, value: str) -> str:
    """A filter of a list: those whose `key` is `value`."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "string_value": value}]})


def connect(host: str, namespace: str) -> KFP:
    """The server at `host`; where that is empty, at the address that the kfp client finds.

    The client looks at KF_PIPELINES_ENDPOINT, the pod's cluster, then kubeconfig. Credentials are the client's too: a
    token in KFP_EXISTING_TOKEN, a service account's in the file KF_PIPELINES_SA_TOKEN_PATH, what KF_PIPELINES_IAP_* and
    ~/.config/kfp/context.json say, or kubeconfig's. SSL_CERT_FILE names a certificate authority of your own.
    """
    import kfp
    from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
    from kfp_server_api import V2beta1GetHealthzResponse

    class Client(kfp.Client):
        def get_kfp_healthz(self, sleep_duration: int = 5) -> V2beta1GetHealthzResponse:
            """Nothing yet: kfp asks five times and logs tracebacks, the question below is asked once."""
            return V2beta1GetHealthzResponse()

    asked = host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
    projected = os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")
    said = io.StringIO()
    with _sentences(asked or "the cluster of kubeconfig", "connecting"), _quiet(said):
        client = Client(
            host=asked or None,
            existing_token=os.environ.get(TOKEN),
            credentials=ServiceAccountTokenVolumeCredentials(projected) if projected else None,
            ssl_ca_cert=os.environ.get("SSL_CERT_FILE"),
        )
    if "Failed to load kube config" in said.getvalue():
        raise KFPError(NO_HOST)
    address = client._existing_config.host = client._existing_config.host.rstrip("/")  # kubeconfig's ends with one
    health = _call(client, address, "connecting", client.healthzs.healthz_service_get_healthz)
    return KFP(client=client, host=address, namespace=namespace if health.multi_user else None)


def _call(client: Any, host: str, doing: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with _sentences(host, doing), _quiet():
        answer = method(*arguments, _request_timeout=TIMEOUT_SECONDS, **options)
        raw = client._run_api.api_client.last_response.data
        if not isinstance(json.loads(raw), dict):
            raise ValueError(raw)
    return answer


@contextlib.contextmanager
def _quiet(said: io.StringIO | None = None) -> Iterator[None]:
    """What kfp and urllib3 print, warn of and log is not for the user: an error's sentence says it."""
    level = logging.root.manager.disable
    with contextlib.redirect_stdout(said or io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


@contextlib.contextmanager
def _sentences(host: str, doing: str) -> Iterator[None]:
    """Raises KFPError for whatever goes wrong inside."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if not error.status:
            raise KFPError(f"{doing}: {_unreachable(host, error.reason or error)}") from None
        raise KFPError(f"{doing}: {_refused(host, error.status, error.body)}", error.status) from None
    except HTTPError as error:
        raise KFPError(f"{doing}: {_unreachable(host, getattr(error, 'reason', None) or error)}") from None
    except OSError as error:  # a token's or certificate's file
        raise KFPError(f"{doing}: {error}") from None
    except (ValueError, TypeError, AttributeError):  # what is no JSON passes the generated client or breaks it
        raise KFPError(
            f"{doing}: what answers at {host} is not the API of Kubeflow Pipelines, a login page perhaps: check the "
            f"address, and give a token in {TOKEN}"
        ) from None


def _unreachable(host: str, reason: Any) -> str:
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ReadTimeoutError, SSLError

    if isinstance(reason, SSLError) or "SSLError" in str(reason):
        if "WRONG_VERSION_NUMBER" in str(reason):
            return f"{host} does not speak TLS: write the address with http://"
        return (
            f"the certificate of {host} was not accepted ({_one_line(reason)}): name the certificate authority's file "
            "in SSL_CERT_FILE"
        )
    if isinstance(reason, ReadTimeoutError):
        return f"{host} did not answer within {TIMEOUT_SECONDS[1]} s: look at the pod ml-pipeline, then try again"
    if isinstance(reason, ConnectTimeoutError) and not isinstance(reason, NewConnectionError):
        return f"{host} cannot be reached within {TIMEOUT_SECONDS[0]} s: check the address and the network"
    return (
        f"{host} cannot be reached ({_one_line(reason).rpartition(': ')[2]}): check the address, and that "
        "`kubectl port-forward` still runs if you use it"
    )


def _refused(host: str, status: int, body: str | None) -> str:
    said = _message(body) or "no reason given"
    if status == 401:
        return f"{host} did not accept the credentials ({said}): give a valid token in {TOKEN}"
    if status == 403:
        return f"{host} does not allow it ({said}): ask for the right in that namespace, or use another account"
    if status >= 500:
        return f"{host} failed ({status}: {said}): look at the log of the deployment ml-pipeline, then try again"
    return f"{host} refused it ({status}: {said})"


def _message(body: str | None) -> str:
    """What the server says: google.rpc.Status with a plainer one in its details, the upload's own form, or text."""
    try:
        answer = json.loads(body or "")
        inner = [detail.get("message") for detail in answer.get("details") or [] if isinstance(detail, dict)]
        found = [*inner, answer.get("message"), answer.get("error_message"), answer.get("error")]
        text = next((str(text) for text in found if text), "")
    except (ValueError, AttributeError):
        text = "" if "<html" in (body or "").lower() else body or ""
    return _one_line(text)


def _one_line(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else line[:300] + " ..."
