"""Kubeflow Pipelines' API v2beta1 over HTTP, for tests.

What it answers to is not written here but read from the published definition, that is from the generated client: every
operation's verb, path, query parameters, body and answer. A request outside the definition is refused and remembered in
`KFPServer.violations`, which a test holds empty. Bodies are held against the client's model classes, keys, types and
enumerations, and answers are built from them. Packages are parsed as KFP's own protocol buffers.

Behaviour is that of the server of KFP 2.17.0 (backend/src/apiserver): errors are google.rpc.Status with a plainer one
in `details`, those of uploads have a form of their own; a version's name is taken once; a run's arguments are held
against the pipeline's inputs; times that are not set are the first second of 1970; a run's steps appear as nodes of
Argo's workflow, drivers and executors among them; a run that is terminated is CANCELING, and then FAILED.
"""

import base64
import contextlib
import inspect
import io
import json
import re
import threading
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from email.policy import HTTP
from graphlib import TopologicalSorter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

SERVICES = (
    kfp_server_api.ExperimentServiceApi,
    kfp_server_api.HealthzServiceApi,
    kfp_server_api.PipelineServiceApi,
    kfp_server_api.PipelineUploadServiceApi,
    kfp_server_api.RecurringRunServiceApi,
    kfp_server_api.RunServiceApi,
)
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 501: 12, 503: 14}
"""google.rpc.Code of an HTTP status."""
UNSET = datetime(1970, 1, 1, tzinfo=UTC)
ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
PARAMETER = {
    "STRING": str,
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One of the definition's operations."""

    name: str
    verb: str
    path: re.Pattern
    queries: frozenset
    body: str | None
    answer: str


def operations():
    """Every operation of the services, read from the generated client."""
    found = []
    for service in SERVICES:
        for name, method in inspect.getmembers(service, inspect.isfunction):
            if not name.endswith("_with_http_info"):
                continue
            text = inspect.getsource(method)
            path, verb = re.search(r"'(/apis/v2beta1/[^']*)', '(\w+)'", text).groups()
            body = re.search(r"body_params = local_var_params\['(\w+)'\]", text)
            found.append(
                Operation(
                    name=name.removesuffix("_with_http_info"),
                    verb=verb,
                    path=pattern(path),
                    queries=frozenset(re.findall(r"query_params.append\(\('([\w.]+)'", text)),
                    body=body and re.search(rf":type {body[1]}: (\w+)", text)[1],
                    answer=re.search(r"response_type='(\w+)'", text)[1],
                )
            )
    return sorted(found, key=lambda operation: operation.path.pattern.count("("))


def pattern(path):
    """What matches a path such as /runs/{run_id}:terminate."""
    parts = re.split(r"\{([\w.]+)\}", path)
    named = [f"(?P<{part.replace('.', '_')}>[^/:]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return re.compile("".join(named) + "$")


OPERATIONS = operations()


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status, self.message = status, message


def model(kind, value, where="body"):
    """`value` as the definition's type `kind`. Raises RefusedError for whatever the definition does not know."""
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        return [model(match[1], item, where) for item in expect(list, value, where)]
    if match := re.fullmatch(r"dict\((\w+), (.*)\)", kind):
        return {key: model(match[2], item, f"{where}.{key}") for key, item in expect(dict, value, where).items()}
    if kind == "object":
        return value
    if kind == "datetime":
        time = datetime.fromisoformat(expect(str, value, where))
        if time.tzinfo is None:
            raise RefusedError(400, f"{where}: {value} has no time zone")
        return time
    if kind in ("str", "int", "bool", "float"):
        return expect({"str": str, "int": int, "bool": bool, "float": float}[kind], value, where)
    cls = getattr(kfp_server_api.models, kind)
    if hasattr(cls, "allowable_values"):
        if value not in cls.allowable_values:
            raise RefusedError(400, f"{where}: invalid value for enum: {value}")
        return value
    names = {key: name for name, key in cls.attribute_map.items()}
    for key in expect(dict, value, where):
        if key not in names:
            raise RefusedError(400, f'{where}: unknown field "{key}"')
    return cls(**{names[k]: model(cls.openapi_types[names[k]], v, f"{where}.{k}") for k, v in value.items()})


def expect(kind, value, where):
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RefusedError(400, f"{where}: {value!r} is no {kind.__name__}")
    return value


def frames(steps, *, failing=None):
    """A run's course, a frame for each time it is asked for: its state, and each begun step's."""
    course = [("PENDING", {})]
    done = {}
    for step in steps:
        course.append(("RUNNING", {**done, step: "DRIVING"}))
        course.append(("RUNNING", {**done, step: "RUNNING"}))
        if step == failing:
            return [*course, ("FAILED", {**done, step: "FAILED"})]
        done[step] = "SUCCEEDED"
    return [*course, ("SUCCEEDED", done)]


@dataclass
class KFPServer:
    """The server, running inside its `with`.

    `token`: the one that is accepted; None, any. `faults`: a part of a path, the status or the page that it is answered
    with, and how often. `page_limit`: the most that a page holds. `course`: what a run goes through, as `frames` gives
    it, or a status for when it is asked in vain; None: every step of its version succeeds. `prefix`: what comes before
    the API's paths.
    """

    multi_user: bool = False
    token: str | None = None
    forbidden: bool = False
    delay: float = 0.0
    prefix: str = ""
    page_limit: int = 200
    course: list | None = None
    tls: object = None
    faults: list = field(default_factory=list)
    pipelines: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    packages: dict = field(default_factory=dict)
    experiments: dict = field(default_factory=dict)
    runs: dict = field(default_factory=dict)
    courses: dict = field(default_factory=dict)
    recurring_runs: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    violations: list = field(default_factory=list)

    def __enter__(self):
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.http.daemon_threads = True
        if self.tls:
            self.http.socket = self.tls.wrap_socket(self.http.socket, server_side=True)
        scheme = "https" if self.tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    @property
    def changes(self):
        """What asked for a change, by operation."""
        return [name for verb, name in self.asked if verb != "GET"]

    # what the server does, by the definition's name of it

    def healthz_service_get_healthz(self):
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=self.multi_user, pipeline_store="database")

    def experiment_service_create_experiment(self, body):
        self.within(body.namespace)
        if any(e.display_name == body.display_name for e in self.experiments.values()):
            raise RefusedError(409, f"Failed to create a new experiment. The name {body.display_name} already exists")
        return self.keep(self.experiments, "experiment_id", body, storage_state="AVAILABLE", last_run_created_at=UNSET)

    def experiment_service_list_experiments(self, **query):
        self.within(query.pop("namespace", None))
        return self.page(self.experiments, "V2beta1ListExperimentsResponse", "experiments", query)

    def pipeline_service_create_pipeline(self, body):
        self.within(body.namespace)
        if any(p.name == body.name for p in self.pipelines.values()):
            raise RefusedError(409, f"Failed to create a new pipeline. The name {body.name} already exist")
        return self.keep(self.pipelines, "pipeline_id", body)

    def pipeline_service_list_pipelines(self, **query):
        self.within(query.pop("namespace", None))
        return self.page(self.pipelines, "V2beta1ListPipelinesResponse", "pipelines", query)

    def pipeline_service_list_pipeline_versions(self, pipeline_id, **query):
        self.found(self.pipelines, pipeline_id, "Pipeline")
        own = {key: v for key, v in self.versions.items() if v.pipeline_id == pipeline_id}
        return self.page(own, "V2beta1ListPipelineVersionsResponse", "pipeline_versions", query)

    def pipeline_service_get_pipeline_version(self, pipeline_id, pipeline_version_id):
        del pipeline_id
        return self.found(self.versions, pipeline_version_id, "PipelineVersion")

    def upload_pipeline_version(self, package, name, pipelineid, description=None, display_name=None):
        self.found(self.pipelines, pipelineid, "Pipeline")
        if any(v.name == name and v.pipeline_id == pipelineid for v in self.versions.values()):
            raise RefusedError(409, "Failed to create a pipeline version")
        try:
            documents = list(yaml.load_all(package, Loader=yaml.CSafeLoader))
            json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
            for document in documents[1:]:
                json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())
        except (yaml.YAMLError, json_format.ParseError, IndexError) as error:
            raise RefusedError(400, f"Failed to create a pipeline version: invalid spec format: {error}") from None
        spec = {"pipeline_spec": documents[0], "platform_spec": documents[1]} if documents[1:] else documents[0]
        version = kfp_server_api.V2beta1PipelineVersion(
            pipeline_id=pipelineid,
            name=name,
            display_name=display_name or name,
            description=description,
            pipeline_spec=spec,
        )
        made = self.keep(self.versions, "pipeline_version_id", version)
        self.packages[made.pipeline_version_id] = package
        return made

    def run_service_create_run(self, body, experiment_id=None):
        del experiment_id
        self.found(self.experiments, body.experiment_id, "Experiment")
        steps = self.takes(body)
        made = self.keep(
            self.runs, "run_id", body, state="PENDING", scheduled_at=UNSET, finished_at=UNSET, storage_state="AVAILABLE"
        )
        self.courses[made.run_id] = list(self.course or frames(steps))
        return made

    def run_service_get_run(self, run_id, experiment_id=None):
        del experiment_id
        run = self.found(self.runs, run_id, "Run")
        course = self.courses[run_id]
        frame = course.pop(0) if len(course) > 1 else course[0]
        if isinstance(frame, int):
            raise RefusedError(frame, "the server is restarting")
        state, steps = frame
        if state != run.state or not run.state_history:
            run.state_history = [
                *(run.state_history or []),
                kfp_server_api.V2beta1RuntimeStatus(update_time=datetime.now(UTC), state=state),
            ]
        run.state = state
        if state in ENDED and run.finished_at == UNSET:
            run.finished_at = datetime.now(UTC)
        run.run_details = kfp_server_api.V2beta1RunDetails(task_details=self.nodes(run, steps))
        return run

    def run_service_list_runs(self, **query):
        query.pop("namespace", None)
        own = self.runs
        if wanted := query.pop("experiment_id", None):
            self.found(self.experiments, wanted, "Experiment")
            own = {key: run for key, run in own.items() if run.experiment_id == wanted}
        return self.page(own, "V2beta1ListRunsResponse", "runs", query)

    def run_service_terminate_run(self, run_id, experiment_id=None):
        del experiment_id
        run = self.found(self.runs, run_id, "Run")
        if run.state in ENDED:
            raise RefusedError(400, f"Failed to terminate a run {run_id}. Row not found")
        steps = self.courses[run_id][0][1]
        self.courses[run_id] = [("CANCELING", steps), ("FAILED", dict.fromkeys(steps, "FAILED"))]
        return {}

    def recurring_run_service_create_recurring_run(self, body):
        self.found(self.experiments, body.experiment_id, "Experiment")
        self.takes(body)
        if not 1 <= int(body.max_concurrency or 0) <= 10:
            raise RefusedError(400, "Max concurrency of a recurring run must be at least 1 and at most 10")
        cron = body.trigger.cron_schedule
        if cron and not 5 <= len(cron.cron.split()) <= 6:
            raise RefusedError(400, f"Schedule cron is not a supported format. Error: {cron.cron}")
        status = "ENABLED" if body.mode == "ENABLE" else "DISABLED"
        return self.keep(self.recurring_runs, "recurring_run_id", body, status=status)

    def recurring_run_service_list_recurring_runs(self, **query):
        self.within(query.pop("namespace", None))
        return self.page(self.recurring_runs, "V2beta1ListRecurringRunsResponse", "recurring_runs", query)

    def recurring_run_service_get_recurring_run(self, recurring_run_id):
        return self.found(self.recurring_runs, recurring_run_id, "Job")

    def recurring_run_service_enable_recurring_run(self, recurring_run_id):
        job = self.found(self.recurring_runs, recurring_run_id, "Job")
        job.mode, job.status = "ENABLE", "ENABLED"
        return {}

    def recurring_run_service_disable_recurring_run(self, recurring_run_id):
        job = self.found(self.recurring_runs, recurring_run_id, "Job")
        job.mode, job.status = "DISABLE", "DISABLED"
        return {}

    def recurring_run_service_delete_recurring_run(self, recurring_run_id, propagation_policy=None):
        model("V2beta1DeletePropagationPolicy", propagation_policy, "propagation_policy")
        self.found(self.recurring_runs, recurring_run_id, "Job")
        del self.recurring_runs[recurring_run_id]
        return {}

    # the parts

    def within(self, namespace):
        if self.multi_user and not namespace:
            raise RefusedError(400, "Invalid input error: namespace cannot be empty in multi-user mode")

    def found(self, kept, key, kind):
        if key not in kept:
            raise RefusedError(404, f"{kind} {key} not found")
        return kept[key]

    def keep(self, kept, key, value, **more):
        setattr(value, key, str(uuid.uuid4()))
        value.created_at = datetime.now(UTC) + timedelta(milliseconds=len(kept))
        for name, given in more.items():
            setattr(value, name, given)
        kept[getattr(value, key)] = value
        return value

    def takes(self, body):
        """The steps of the version that a run or a recurring run names, once its arguments fit the inputs."""
        reference = body.pipeline_version_reference
        version = self.found(self.versions, reference.pipeline_version_id, "PipelineVersion")
        root = version.pipeline_spec.get("pipeline_spec", version.pipeline_spec)["root"]
        inputs, given = root["inputDefinitions"]["parameters"], body.runtime_config.parameters
        for name, declared in inputs.items():
            kind = declared["parameterType"]
            if name not in given and not declared.get("isOptional"):
                raise RefusedError(400, f"parameter {name} is not optional, yet has no value")
            if name in given and not isinstance(given[name], PARAMETER[kind]):
                raise RefusedError(400, f"input parameter {name} requires type {kind}")
        if extra := sorted(set(given) - set(inputs)):
            raise RefusedError(400, f"parameter(s) provided are not required by pipeline: {', '.join(extra)}")
        tasks = root["dag"]["tasks"]
        return list(
            TopologicalSorter({name: task.get("dependentTasks", ()) for name, task in tasks.items()}).static_order()
        )

    def nodes(self, run, steps):
        """The nodes of the workflow, in no order that means anything, as Argo has them."""

        def node(name, state, *, ended=True):
            now = datetime.now(UTC)
            return kfp_server_api.V2beta1PipelineTaskDetail(
                run_id=run.run_id,
                task_id=str(uuid.uuid4()),
                display_name=name,
                create_time=now,
                start_time=run.created_at,
                end_time=run.created_at + timedelta(seconds=90) if ended else UNSET,
                state=state,
            )

        whole = [node(name, run.state, ended=run.state in ENDED) for name in ("narrowcast-training-x7k2p", "root")]
        found = [*whole, node("root-driver", "SUCCEEDED")] if steps else []
        for name, state in reversed(steps.items()):
            if state == "DRIVING":
                found.append(node(f"{name}-driver", "RUNNING", ended=False))
                continue
            ended = state in ENDED
            found += [
                node("executor", state, ended=ended),
                node(name, state, ended=ended),
                node(f"{name}-driver", "SUCCEEDED"),
            ]
        return found

    def page(self, kept, kind, items, query):
        rows = list(kept.values())
        if text := query.get("filter"):
            wanted = model("V2beta1Filter", json.loads(text), "filter")
            for predicate in wanted.predicates:
                if predicate.operation != "EQUALS":
                    raise RefusedError(501, f"operation {predicate.operation}")
                rows = [row for row in rows if getattr(row, predicate.key) == predicate.string_value]
        if sort := query.get("sort_by"):
            name, *direction = sort.split()
            if direction not in ([], ["asc"], ["desc"]) or (rows and name not in rows[0].attribute_map):
                raise RefusedError(400, f"Received invalid sort by format '{sort}'")
            rows.sort(key=lambda row: getattr(row, name), reverse=direction == ["desc"])
        start = int(base64.b64decode(query["page_token"])) if query.get("page_token") else 0
        size = min(int(query.get("page_size") or 20), self.page_limit)
        token = base64.b64encode(str(start + size).encode()).decode() if start + size < len(rows) else None
        page = {items: rows[start : start + size] or None, "total_size": len(rows), "next_page_token": token}
        return getattr(kfp_server_api.models, kind)(**page)


def handler(server):
    """The HTTP side of a server: the definition's operations, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            address = urllib.parse.urlsplit(self.path.removeprefix(server.prefix))
            if server.delay:
                time.sleep(server.delay)
            try:
                self.faulty(address.path)
                self.allowed()
                self.reply(200, self.perform(address, body))
            except RefusedError as error:
                self.reply(error.status, refusal(error, upload="/upload" in address.path))
            except PageError as page:
                self.reply(page.status, page.text, kind="text/html")

        do_GET = do_POST = do_DELETE = answer

        def faulty(self, path):
            for i, (part, status, times) in enumerate(server.faults):
                if part in path and times:
                    server.faults[i] = (part, status, times - 1)
                    if isinstance(status, str):
                        raise PageError(200, status)
                    raise RefusedError(status, f"{part} is out of order")

        def allowed(self):
            if server.token and self.headers.get("authorization") != f"Bearer {server.token}":
                raise RefusedError(401, "Request header error: there is no user identity header")
            if server.forbidden:
                raise RefusedError(403, "User 'mallory' is not authorized with reason: (no access)")

        def perform(self, address, body):
            for operation in OPERATIONS:
                match = operation.path.match(urllib.parse.unquote(address.path))
                if match and operation.verb == self.command:
                    return self.do(operation, match.groupdict(), dict(urllib.parse.parse_qsl(address.query)), body)
            server.violations.append(f"{self.command} {address.path}")
            raise RefusedError(404, "Not Found")

        def do(self, operation, path, query, body):
            server.asked.append((operation.verb, operation.name))
            if unknown := set(query) - operation.queries:
                server.violations.append(f"{operation.name} has no query {sorted(unknown)}")
            method = getattr(server, operation.name, None)
            if method is None:
                raise RefusedError(501, f"{operation.name} is not implemented")
            arguments = {**path, **query}
            if operation.name.startswith("upload"):
                arguments["package"] = uploaded(self.headers, body)
            elif operation.body:
                try:
                    arguments["body"] = model(operation.body, json.loads(body))
                except RefusedError as error:
                    server.violations.append(error.message)
                    raise
            return kfp_server_api.ApiClient().sanitize_for_serialization(method(**arguments))

        def reply(self, status, value, kind="application/json"):
            data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            with contextlib.suppress(ConnectionError):  # who asked has gone
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Handler


class PageError(Exception):
    """A web page in the API's place, as a proxy gives one to whoever has not logged in."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status, self.text = status, text


def refusal(error, *, upload):
    if upload:
        return {"error_message": error.message, "error_details": error.message}
    code = CODES[error.status]
    detail = {"@type": "type.googleapis.com/google.rpc.Status", "code": code, "message": error.message}
    message = f"Failed: {error.message}"
    return {"error": message, "code": code, "message": message, "details": [detail]}


def uploaded(headers, body):
    """The text of the form's one file."""
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    form = BytesParser(policy=HTTP).parse(io.BytesIO(head + body))
    parts = [part for part in form.iter_parts() if part.get_param("name", header="content-disposition") == "uploadfile"]
    if len(parts) != 1:
        raise RefusedError(400, "Failed to read pipeline from file")
    return parts[0].get_payload(decode=True).decode()
