"""`narrowcast submit`, `status`, `cancel` and `schedule` against a server that speaks KFP's API."""

import json
import re
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime

import kfp_server_api
import pytest
import yaml
from kfp_api import KFPServer, frames

from narrowcast.pipelines import cli, cluster_runs, kfp_client, placement
from narrowcast.pipelines.graph import steps

DAG = [name.replace("_", "-") for name in steps()]


@pytest.fixture
def api():
    with KFPServer() as server:
        yield server
    assert server.violations == []


@pytest.fixture(scope="session")
def compiled():
    """Packages by their settings: each is compiled once."""
    return {}


@pytest.fixture
def project(tmp_path, monkeypatch, compiled):
    """A checkout with one commit and nothing but parameters."""
    cluster = {
        "parameters": {"data_remote": "s3://bucket/data", "online_store": "redis://redis.narrowcast.svc:6379/0"},
        "home": "s3://bucket/home",
    }
    values = {"schema": "ml_100k", "data_version": "0" * 32 + ".dir", "cluster": cluster}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b.c commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    write = placement.write_package

    def write_once(settings, path):
        if repr(settings) not in compiled:
            write(settings, path)
            compiled[repr(settings)] = path.read_text()
        path.write_text(compiled[repr(settings)])

    monkeypatch.setattr(placement, "write_package", write_once)
    monkeypatch.setattr(cluster_runs, "POLL_SECONDS", 0.02)
    for name in (
        "KF_PIPELINES_ENDPOINT",
        "KF_PIPELINES_UI_ENDPOINT",
        "KFP_EXISTING_TOKEN",
        "KF_PIPELINES_SA_TOKEN_PATH",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    return tmp_path


@pytest.fixture
def narrowcast(project, api, monkeypatch, capsys):
    """The command: its exit status, and what it prints on either stream."""

    def run(*arguments, host=api.url):
        monkeypatch.setattr(sys, "argv", ["narrowcast", *arguments, *(("--host", host) if host else ())])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def commit():
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def only(kept):
    (one,) = kept.values()
    return one


def assert_sentence(done, *parts):
    """Status 1 and one line that holds every part."""
    status, out, err = done
    assert (status, out) == (1, "")
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    for part in parts:
        assert part in err


def test_a_run_is_of_the_commit_with_the_clusters_arguments(narrowcast, api):
    status, out, err = narrowcast("submit", "--set", "epochs=3", "--run-name", "three epochs")
    assert status == 0, err
    run, version = only(api.runs), only(api.versions)
    assert out.split() == [run.run_id]
    assert f"{api.url}/#/runs/details/{run.run_id}" in err
    assert version.name == commit()
    assert only(api.pipelines).name == "narrowcast-training"
    assert only(api.experiments).display_name == "narrowcast"
    assert run.display_name == "three epochs"
    assert run.service_account == "narrowcast-pipeline"
    given = run.runtime_config.parameters
    assert given["epochs"] == 3
    assert given["git_commit"] == commit()
    assert given["home"] == "s3://bucket/home"
    assert given["champion"] == "s3://bucket/home/endpoints/default.json"
    assert given["data_remote"] == "s3://bucket/data"
    assert "\nname: ml_100k\n" in given["schema"]
    assert given["ray"]["home"] == "s3://bucket/home"
    assert {"image"} <= set(given["kserve"])


def test_the_package_is_uploaded_once_and_again_when_it_differs(narrowcast, api):
    assert narrowcast("submit")[0] == 0
    assert "there already" in narrowcast("submit")[2]
    assert len(api.versions) == 1
    assert narrowcast("submit", "--set", "cluster.image=other:1")[0] == 0
    assert narrowcast("submit", "--set", "cluster.image=other:1")[0] == 0
    assert narrowcast("submit", "--no-cache")[0] == 0
    names = [version.name for version in api.versions.values()]
    assert names[0] == commit()
    assert re.fullmatch(commit() + "-[0-9a-f]{8}", names[1])
    assert names[2:] == [commit() + "-uncached"]
    cached = [caching(package) for package in api.packages.values()]
    assert any(cached[0].values())
    assert not any(cached[2].values())
    assert len(api.runs) == 5
    assert len({run.pipeline_version_reference.pipeline_version_id for run in api.runs.values()}) == 3


def caching(package):
    """Of each step, whether it may be taken from the cache."""
    tasks = next(yaml.load_all(package, Loader=yaml.CSafeLoader))["root"]["dag"]["tasks"]
    return {name: task["cachingOptions"].get("enableCache", False) for name, task in tasks.items()}


def test_the_latest_data_is_fetched_every_time(narrowcast, api):
    assert narrowcast("submit", "--set", "data_version=latest:data/raw/shop")[0] == 0
    assert only(api.versions).name == commit() + "-uncached"
    assert only(api.runs).runtime_config.parameters["data_version"] == "latest:data/raw/shop"


def test_an_unclean_checkout_is_named_so(narrowcast, api, project):
    with (project / "params.yaml").open("a") as file:
        file.write("seed: 1\n")
    assert_sentence(narrowcast("submit"), "tracked files differ", "--allow-dirty")
    assert api.asked == []
    assert narrowcast("submit", "--allow-dirty")[0] == 0
    assert re.fullmatch(commit() + "-changes-[0-9a-f]{8}", only(api.versions).name)
    assert only(api.runs).runtime_config.parameters["git_commit"] == commit() + "+changes"


def test_json_is_all_that_is_printed(narrowcast, api, project):
    _, out, err = narrowcast("submit", "--json")
    run = only(api.runs)
    assert json.loads(out) == {
        "run_id": run.run_id,
        "name": run.display_name,
        "version": commit(),
        "new_version": True,
        "url": f"{api.url}/#/runs/details/{run.run_id}",
    }
    assert len(err.splitlines()) == 1
    command = [sys.executable, "-m", "narrowcast.pipelines.cli", "status", "--json", "--host", api.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=project)
    assert [run["state"] for run in json.loads(done.stdout)] == ["PENDING"]
    assert done.stderr == ""


def test_waiting_shows_every_step_and_ends_with_the_run(narrowcast, api):
    status, out, err = narrowcast("submit", "--wait")
    assert status == 0, err
    said = [line.split()[1:] for line in err.splitlines()[1:]]
    assert said[0] == ["run", "pending"]
    assert said[-1] == ["run", "succeeded"]
    for step in DAG:
        assert [state for name, state in said if name == step] == ["pending", "running", "succeeded"]
    assert re.search(r"checkout +│ succeeded +│ 0:01:30", out)
    shown = [line.split()[1] for line in out.splitlines() if "│" in line]
    assert (shown[0], shown[-1], set(shown)) == ("checkout", "report", set(DAG))


def test_a_failed_run_names_the_step(narrowcast, api):
    api.course = frames(DAG, failing="train")
    status, out, err = narrowcast("submit", "--wait", "--json")
    assert status == 1
    run_id = only(api.runs).run_id
    assert err.splitlines()[-1] == (
        f"error: run {run_id} failed in step 'train': `narrowcast logs {run_id} train` says why"
    )
    states = {step["name"]: step["state"] for step in json.loads(out)["steps"]}
    assert set(states) == set(DAG)
    assert states["train"] == "FAILED"
    assert states["deploy"] == "WAITING"


def test_a_cancelled_run_has_a_status_of_its_own(narrowcast, api):
    api.course = [("RUNNING", {"checkout": "RUNNING"})]
    run_id = narrowcast("submit")[1].strip()
    status, out, _ = narrowcast("cancel", run_id)
    assert status == 0
    assert "is canceling" in out
    assert narrowcast("status", run_id, "--wait", "--json")[0] == 3
    status, out, _ = narrowcast("status", run_id, "--json")
    assert (status, json.loads(out)["state"]) == (0, "CANCELED")
    assert_sentence(narrowcast("cancel", run_id), "has ended already (canceled)")
    assert_sentence(narrowcast("cancel", "no-such-run"), "no run 'no-such-run'", "`narrowcast status`")


def test_a_server_away_for_a_while_is_waited_for(narrowcast, api):
    running = ("RUNNING", {"checkout": "RUNNING"})
    api.course = [running, 503, 502, running, 503, ("SUCCEEDED", {"checkout": "SUCCEEDED"})]
    assert narrowcast("submit", "--wait")[0] == 0


def test_in_a_run_that_succeeded_every_step_has_whatever_the_server_knew_of_it_last(narrowcast, api):
    api.course = [("SUCCEEDED", {"checkout": "SUCCEEDED", "ingest": "RUNNING"})]
    run_id = narrowcast("submit")[1].strip()
    steps = json.loads(narrowcast("status", run_id, "--json")[1])["steps"]
    assert {step["name"]: step["state"] for step in steps} == dict.fromkeys(DAG, "SUCCEEDED")


def test_an_interrupt_ends_the_waiting_and_not_the_run(narrowcast, api, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    status, out, err = narrowcast("submit", "--wait")
    assert (status, out) == (130, "")
    assert err.endswith(f"run {only(api.runs).run_id} goes on: `narrowcast cancel {only(api.runs).run_id}` ends it\n")
    assert "run_service_terminate_run" not in api.changes


@pytest.mark.parametrize("fault", [503, 401])
def test_a_server_that_stays_away_is_not(narrowcast, api, monkeypatch, fault):
    monkeypatch.setattr(cluster_runs, "PATIENCE", 2)
    api.course = [("RUNNING", {"checkout": "RUNNING"}), fault]
    status, _, err = narrowcast("submit", "--wait")
    assert status == 1
    assert "the server is restarting" in err
    assert f"the run goes on: `narrowcast status {only(api.runs).run_id}`" in err
    assert api.asked.count(("GET", "run_service_get_run")) == {503: 4, 401: 2}[fault]


def test_status_lists_the_newest_runs_over_pages(narrowcast, api):
    api.page_limit = 2
    ids = [narrowcast("submit", "--run-name", f"run {i}")[1].strip() for i in range(5)]
    status, out, _ = narrowcast("status", "--last", "4", "--json")
    assert status == 0
    assert [run["run_id"] for run in json.loads(out)] == ids[:0:-1]
    assert narrowcast("status")[0] == 0


def test_status_knows_the_steps_of_a_deleted_version(narrowcast, api):
    run_id = narrowcast("submit", "--wait")[1] and only(api.runs).run_id
    api.versions.clear()
    status, out, _ = narrowcast("status", run_id, "--json")
    assert status == 0
    assert {step["name"] for step in json.loads(out)["steps"]} == set(DAG)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--set", "epoch=3"], ["unknown parameter 'epoch'; did you mean 'epochs'"]),
        (["--set", "epochs=many"], ["'epochs' must be int"]),
        (["--set", "backbone=deepmf"], ["did you mean 'deepfm'"]),
        (["--set", "cluster.hots=a"], ["cluster: unknown key 'hots'; did you mean 'host'"]),
        (["--set", "cluster.parameters.budgt=2"], ["'budgt'", "did you mean 'budget'"]),
        (["--set", "cluster.parameters.data_remote=/data"], ["data_remote is '/data'", "no pod can reach"]),
        (["--set", "cluster.parameters.bits=7"], ["bits is 7"]),
        (["--set", "schema=ml_10k"], ["ml_10k"]),
    ],
)
def test_nothing_is_sent_when_a_parameter_is_wrong(narrowcast, api, arguments, parts):
    assert_sentence(narrowcast("submit", *arguments), *parts)
    assert_sentence(narrowcast("schedule", "create", "nightly", "--cron", "@daily", *arguments), *parts)
    assert api.asked == []


def test_an_experiment_given_by_name_must_exist(narrowcast, api):
    assert_sentence(narrowcast("submit", "--experiment", "ctr"), "no experiment 'ctr'", "there is none yet")
    assert narrowcast("submit")[0] == 0
    assert_sentence(narrowcast("submit", "--experiment", "narowcast"), "did you mean 'narrowcast'")
    assert_sentence(narrowcast("status", "--experiment", "ctr"), "no experiment 'ctr'")
    assert len(api.runs) == 1
    assert narrowcast("submit", "--experiment", "ctr", "--create-experiment")[0] == 0
    assert {e.display_name for e in api.experiments.values()} == {"narrowcast", "ctr"}


def test_users_of_their_own_are_kept_apart(narrowcast, api):
    api.multi_user = True
    assert narrowcast("submit", "--set", "cluster.namespace=team")[0] == 0
    assert only(api.experiments).namespace == only(api.pipelines).namespace == "team"


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        (("healthz", 500, 9), ["connecting: ", "failed (500: healthz is out of order)", "ml-pipeline"]),
        (("healthz", 503, 9), ["failed (503"]),
        (("experiments", 404, 9), ["looking for experiment 'narrowcast'"]),
        (("upload_version", 400, 9), ["uploading version", "refused it (400: upload_version is out of order)"]),
        (("upload_version", 409, 9), ["was uploaded by someone else just now"]),
        (("upload_version", 500, 9), ["failed (500: upload_version is out of order)"]),
        (("v2beta1/runs", 400, 9), ["creating run", "refused it (400: v2beta1/runs is out of order)"]),
        (("healthz", "<html><title>Log in</title></html>", 9), ["not the API of Kubeflow Pipelines, a login page"]),
        (("pipelines", "<html>", 9), ["looking for pipeline narrowcast-training", "a login page"]),
    ],
)
def test_what_the_server_refuses_is_one_sentence(narrowcast, api, fault, parts):
    api.faults.append(fault)
    assert_sentence(narrowcast("submit"), *parts)


def test_a_pipeline_that_the_server_rejects(narrowcast, api, monkeypatch):
    write = placement.write_package

    def spoilt(settings, path):
        write(settings, path)
        path.write_text(path.read_text().replace("sdkVersion:", "sdkVersjon:"))

    monkeypatch.setattr(placement, "write_package", spoilt)
    assert_sentence(narrowcast("submit"), "uploading version", "invalid spec format", "sdkVersjon")


def test_credentials(narrowcast, api, monkeypatch, tmp_path):
    api.token = "right"
    assert_sentence(narrowcast("submit"), "did not accept the credentials", "KFP_EXISTING_TOKEN")
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "wrong")
    assert_sentence(narrowcast("submit"), "did not accept the credentials")
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "right")
    assert narrowcast("submit")[0] == 0
    monkeypatch.delenv("KFP_EXISTING_TOKEN")
    (tmp_path / "token").write_text("right")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert narrowcast("submit")[0] == 0
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "nothing"))
    assert_sentence(narrowcast("submit"), str(tmp_path / "nothing"))


def test_what_is_not_allowed(narrowcast, api):
    api.forbidden = True
    assert_sentence(narrowcast("submit"), "does not allow it", "mallory")


def test_the_host_is_found_as_the_client_does(narrowcast, api, monkeypatch):
    assert_sentence(narrowcast("submit", host=None), "no address of Kubeflow Pipelines", "cluster.host")
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", api.url)
    assert narrowcast("submit", host=None)[0] == 0
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://localhost:1")
    assert narrowcast("submit", "--set", f"cluster.host={api.url}", host=None)[0] == 0


def test_the_cluster_of_kubeconfig(narrowcast, api, project):
    api.prefix = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
    api.token = "mine"
    config = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
        "clusters": [{"name": "it", "cluster": {"server": api.url}}],
        "users": [{"name": "me", "user": {"token": "mine"}}],
    }
    (project / "kubeconfig").write_text(yaml.safe_dump(config))
    status, _, err = narrowcast("submit", host=None)
    assert status == 0, err
    assert len(api.runs) == 1


def test_a_host_that_cannot_be_reached(narrowcast, api):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert_sentence(narrowcast("status", host=f"http://127.0.0.1:{port}"), "cannot be reached", "Connection refused")
    assert_sentence(narrowcast("status", host=api.url.removeprefix("http://")), "does not speak TLS", "with http://")
    assert_sentence(narrowcast("status", host="http://no-such-host.invalid"), "no-such-host.invalid cannot be reached")
    assert_sentence(narrowcast("status", host="http://127.0.0.1:port"), "cannot be reached")


def test_a_host_that_does_not_answer(narrowcast, api, monkeypatch):
    monkeypatch.setattr(kfp_client, "TIMEOUT_SECONDS", (1, 0.2))
    api.delay = 1.0
    assert_sentence(narrowcast("status"), "did not answer within 0.2 s")


def test_a_certificate_nobody_vouches_for(narrowcast, monkeypatch, tmp_path):
    make = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(["openssl", *make.split(), *files], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with KFPServer(tls=tls) as secure:
        assert_sentence(narrowcast("submit", host=secure.url), "certificate", "not accepted", "SSL_CERT_FILE")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert narrowcast("submit", host=secure.url)[0] == 0
        assert len(secure.runs) == 1


def test_a_schedules_life(narrowcast, api):
    status, out, err = narrowcast("schedule", "create", "nightly", "--cron", "0 3 * * *")
    assert status == 0, err
    assert "sent as '0 0 3 * * *', seconds first" in out
    assert len(re.findall(r"\d{4}-\d\d-\d\d 03:00:00", out)) == 3
    job = only(api.recurring_runs)
    assert job.trigger.cron_schedule.cron == "0 0 3 * * *"
    assert (job.max_concurrency, job.no_catchup, job.mode) == ("1", True, "ENABLE")
    assert job.service_account == "narrowcast-pipeline"
    version = api.versions[job.pipeline_version_reference.pipeline_version_id]
    assert version.name == commit() + "-uncached"
    assert not any(caching(only(api.packages)).values())

    assert_sentence(narrowcast("schedule", "create", "nightly", "--every", "6h"), "a schedule 'nightly' already")
    assert narrowcast("schedule", "pause", "nightly")[0] == 0
    assert job.status == "DISABLED"
    (listed,) = json.loads(narrowcast("schedule", "list", "--json")[1])
    assert (listed["name"], listed["when"], listed["enabled"], listed["upcoming"]) == (
        "nightly",
        "0 0 3 * * *",
        False,
        [],
    )
    assert narrowcast("schedule", "resume", job.recurring_run_id)[0] == 0
    assert job.status == "ENABLED"
    assert "nightly" in narrowcast("schedule", "list")[1]
    assert_sentence(narrowcast("schedule", "pause", "nigthly"), "no schedule 'nigthly'", "did you mean 'nightly'")
    assert narrowcast("schedule", "delete", "nightly")[0] == 0
    assert api.recurring_runs == {}
    assert_sentence(narrowcast("schedule", "resume", "nightly"), "no schedule 'nightly'", "there is none")


def test_a_schedule_by_interval_with_bounds(narrowcast, api):
    done = narrowcast(
        *(
            "schedule",
            "create",
            "often",
            "--every",
            "6h",
            "--start",
            "2099-05-01",
            "--end",
            "2099-05-01T10:00:00+02:00",
        ),
        *("--catch-up", "--set", "data_version=latest:data/raw/shop", "--json"),
    )
    assert done[0] == 0, done[2]
    assert json.loads(done[1])["upcoming"] == ["2099-05-01T00:00:00+00:00", "2099-05-01T06:00:00+00:00"]
    job = only(api.recurring_runs)
    schedule = job.trigger.periodic_schedule
    assert schedule.interval_second == "21600"
    assert schedule.start_time == datetime(2099, 5, 1, tzinfo=UTC)
    assert schedule.end_time == datetime(2099, 5, 1, 8, tzinfo=UTC)
    assert job.no_catchup is False
    assert job.runtime_config.parameters["data_version"] == "latest:data/raw/shop"
    assert json.loads(narrowcast("schedule", "list", "--json")[1])[0]["when"] == "every 6:00:00"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["either --cron", "or --every"]),
        (["--cron", "0 3 * * *", "--every", "6h"], ["either --cron", "or --every"]),
        (["--cron", "0 25 * * *"], ["the hour is '25', must be 0 to 23"]),
        (["--cron", "nightly"], ["cron 'nightly': give five fields"]),
        (["--every", "6 hours"], ["30m, 6h or 1d"]),
        (["--every", "0h"], ["30m, 6h or 1d"]),
        (["--every", "6h", "--start", "tomorrow"], ["--start tomorrow"]),
        (["--every", "6h", "--end", "2020-01-01"], ["before it begins"]),
        (["--every", "6h", "--start", "2099-02-01", "--end", "2099-01-01"], ["before it begins"]),
    ],
)
def test_a_schedule_that_says_no_time_is_not_sent(narrowcast, api, arguments, parts):
    assert_sentence(narrowcast("schedule", "create", "nightly", *arguments), *parts)
    assert api.asked == []


def test_schedules_of_one_name_are_told_apart_by_id(narrowcast, api):
    assert narrowcast("schedule", "create", "nightly", "--cron", "@daily")[0] == 0
    first = only(api.recurring_runs)
    twin = kfp_server_api.V2beta1RecurringRun(display_name=first.display_name, trigger=first.trigger)
    api.keep(api.recurring_runs, "recurring_run_id", twin, status="ENABLED")
    assert_sentence(
        narrowcast("schedule", "delete", "nightly"), "2 schedules are called 'nightly'", twin.recurring_run_id
    )
    assert narrowcast("schedule", "delete", twin.recurring_run_id)[0] == 0
    assert len(api.recurring_runs) == 1
