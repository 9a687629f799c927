"""The container image, built and run by podman: steps make what they make outside it, and the predictor answers."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from kfp import dsl, local

from narrowcast.components.data.component import encode
from narrowcast.components.serve import client
from narrowcast.components.train.component import train
from narrowcast.records import digest, read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
PUBLIC_BASE = "docker.io/library/python:3.11-slim-bookworm"
OWN_BASE = "localhost/debian-python:bookworm"
IMAGE = "localhost/narrowcast-test:latest"
TRUST = [file for file in ("/etc/ssl/certs", "/etc/pip.conf") if Path(file).exists()]
"""What a build must know of this machine to reach its package index."""
CONFINED = ["--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", "--cap-drop=all"]
CONFINED += ["--security-opt=no-new-privileges"]
KINDS = (".py", ".yaml", ".html")
TRAINING = {
    "backbone": "deepfm",
    "model": {},
    "width": 8,
    "inner_width": 0,
    "epochs": 1,
    "batch_size": 256,
    "learning_rate": 0.001,
    "num_workers": 0,
    "training": {},
    "seed": 0,
    "ray": {},
}


@dsl.pipeline
def encode_and_train(frame: str, schema: str):
    rows = dsl.importer(artifact_uri=frame, artifact_class=dsl.Dataset)
    shards = encode(frame=rows.output, schema=schema)
    train(encoded=shards.outputs["encoded"], **TRAINING)


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    """Runs podman and gives its output; containers ask for no higher limits than a sandbox's root may set."""
    if not shutil.which("podman"):
        pytest.skip("podman is not installed (Debian: apt-get install podman runc)")
    settings = tmp_path_factory.mktemp("podman") / "containers.conf"
    settings.write_text('[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", str(settings))
        yield lambda *arguments: run("podman", *arguments)


def run(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def image(podman):
    """Podman builds again only what follows a change. A build fetches packages, so it is asked for."""
    if not os.environ.get("NARROWCAST_BUILD_IMAGE"):
        pytest.skip("builds an image, which fetches packages: set NARROWCAST_BUILD_IMAGE=1 to let it")

    def is_here(name):
        return subprocess.run(["podman", "image", "exists", name], check=False).returncode == 0

    base = PUBLIC_BASE if is_here(PUBLIC_BASE) else OWN_BASE
    if not is_here(base):
        if not shutil.which("mmdebstrap"):
            pytest.skip(f"neither {PUBLIC_BASE} nor mmdebstrap is here (Debian: apt-get install mmdebstrap)")
        run("make", "image-base", f"BASE_IMAGE={base}")
    mounts = " ".join(f"--volume {file}:{file}:ro" for file in TRUST)
    run("make", "image", "ENGINE=podman", f"IMAGE={IMAGE}", f"BUILD=--build-arg BASE={base} --network host {mounts}")
    return IMAGE


def test_the_image_holds_every_file_of_the_package(podman, image):
    folders = ("components", "feature_repo", "narrowcast", "pipelines", "schemas")
    files = [file for folder in folders for file in ROOT.glob(f"{folder}/**/*") if file.suffix in KINDS]
    names = {file.relative_to(ROOT).as_posix().removeprefix("narrowcast/") for file in files}
    package = "/opt/narrowcast/lib/python3.11/site-packages/narrowcast"
    found = podman("run", "--rm", "--network=none", "--workdir", package, image, "find", ".", "-type", "f")
    assert names <= {name.removeprefix("./") for name in found.split()}


def test_the_image_runs_as_a_user_who_writes_below_tmp_alone(podman, image):
    script = "id -u; for folder in /tmp / /opt/narrowcast /var/tmp; do touch $folder/file && echo $folder; done; true"
    said = podman("run", "--rm", "--network=none", *CONFINED, image, "sh", "-c", script)
    assert said.split() == ["1000", "/tmp"]


def run_to_its_end(client, image, command, volumes, **options):
    """In place of kfp's own, which has a container removed when it ends and takes one that is gone for a success."""
    container = client.containers.run(image, command, volumes=volumes, detach=True, **options)
    try:
        for line in container.logs(stream=True, follow=True):
            print(line.decode(), end="")
        return container.wait()["StatusCode"]
    finally:
        container.remove(force=True)


@pytest.fixture
def run_in_containers(podman, image, monkeypatch, tmp_path_factory):
    """Runs `encode_and_train` by kfp's DockerRunner over podman's socket; the folder of its artifacts."""
    root = tmp_path_factory.mktemp("pipeline")
    address = tmp_path_factory.mktemp("socket") / "podman.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{address}")
    monkeypatch.setattr("kfp.local.docker_task_handler.run_docker_container", run_to_its_end)
    for executor in encode_and_train.pipeline_spec.deployment_spec["executors"].values():
        if "container" in executor:
            executor["container"]["image"] = image
    confined = {"read_only": True, "tmpfs": {"/tmp": ""}, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
    local.init(local.DockerRunner(network_mode="none", **confined), pipeline_root=str(root))

    def run_pipeline(frame, schema):
        copied = shutil.copytree(frame, root / "frame", dirs_exist_ok=True)  # containers see this folder alone
        encode_and_train(frame=str(copied), schema=schema)
        return root

    before = os.umask(0)  # the containers' user writes into folders that kfp makes as this one
    root.chmod(0o777)
    service = subprocess.Popen(["podman", "system", "service", "--time=0", f"unix://{address}"])
    try:
        deadline = time.monotonic() + 30
        while not address.exists():
            assert time.monotonic() < deadline, "podman's service does not start"
            time.sleep(0.05)
        yield run_pipeline
    finally:
        service.terminate()
        service.wait()
        os.umask(before)


def test_steps_make_the_same_artifacts_inside_as_outside(run_in_containers, tiny_run, tmp_path):
    schema = (tiny_run.packed_model / "schema.yaml").read_text()
    artifact = {name: dsl.Artifact(uri=str(tmp_path / name)) for name in ("encoded", "full_model")}
    frame = dsl.Artifact(uri=str(tiny_run.frame))
    encode.python_func(frame=frame, schema=schema, encoded=artifact["encoded"])
    train.python_func(encoded=artifact["encoded"], **TRAINING, full_model=artifact["full_model"])

    root = run_in_containers(tiny_run.frame, schema)
    inside = {name: next(root.rglob(name)) for name in artifact}
    assert os.getuid() not in {path.stat().st_uid for path in inside.values()}
    assert {name: digest(path) for name, path in inside.items()} == {name: digest(tmp_path / name) for name in artifact}


def test_a_step_that_fails_in_its_container_has_failed(run_in_containers, tiny_run, capfd):
    schema = (tiny_run.packed_model / "schema.yaml").read_text()
    with pytest.raises(RuntimeError, match="encode"):
        run_in_containers(tiny_run.frame, schema.replace("name: price", "name: prize"))
    assert "prize" in capfd.readouterr().out


@pytest.fixture
def start(podman, image):
    """Starts a command in a confined container, which is removed after the test; the container."""
    started = []

    def start_container(*arguments, command):
        started.append(podman("run", "--detach", *CONFINED, *arguments, image, *command).strip())
        return started[-1]

    yield start_container
    for container in started:
        podman("rm", "--force", container)


def wait_for(answers, container, podman):
    deadline = time.monotonic() + 180
    while not answers():
        running = podman("inspect", "--format={{.State.Running}}", container).strip() == "true"
        if not running or time.monotonic() > deadline:
            logs = subprocess.run(["podman", "logs", container], capture_output=True, text=True, check=False)
            pytest.fail(f"no answer from {container}:\n{logs.stdout}{logs.stderr}")
        time.sleep(0.2)


def test_the_predictor_answers_in_a_confined_container(podman, start, tiny_run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mounts = [f"--volume={tiny_run.packed_model}:/mnt/model:ro", f"--volume={tiny_run.feature_store}:/mnt/store:ro"]
    server = ["python", "-m", "narrowcast.components.serve.server", "--model", "/mnt/model", "--store", "/mnt/store"]
    container = start("--network=host", *mounts, command=[*server, "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: client.is_ready(url, "tiny"), container, podman)
    sample = read_json(tiny_run.packed_model / "sample_request.json")
    answer = client.infer(url, "tiny", sample["request"]["inputs"])
    assert client.probabilities(answer) == pytest.approx(sample["expected"], abs=sample["tolerance"])
    assert answer["model_version"] == digest(tiny_run.packed_model)


def test_ray_is_probed_and_takes_a_job_as_kuberay_asks(podman, start):
    token = ["--env=RAY_AUTH_MODE=token", f"--env=RAY_AUTH_TOKEN={'0' * 32}"]
    head = ["ray", "start", "--head", "--block", "--num-cpus=0", "--dashboard-host=0.0.0.0"]
    container = start("--network=none", *token, command=[*head, "--object-store-memory=80000000"])

    def inside(*command):
        return subprocess.run(["podman", "exec", container, *command], capture_output=True, text=True, check=False)

    probe = "import urllib.request; print(urllib.request.urlopen('http://localhost:52365/api/healthz').read())"
    wait_for(lambda: inside("python", "-c", probe).returncode == 0, container, podman)
    job = inside("ray", "job", "submit", "--address=http://localhost:8265", "--", "python", "-c", "print(6 * 7)")
    assert job.returncode == 0, job.stdout + job.stderr
    assert "42" in job.stdout.splitlines()
