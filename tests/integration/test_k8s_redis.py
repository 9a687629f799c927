"""The online store as k8s/ has it, its configuration and start run with a real redis-server."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, OutOfMemoryError
from redis.retry import Retry

from narrowcast.components.features.build import build_features
from narrowcast.components.features.online import OnlineFeatures
from narrowcast.components.features.redis_url import PASSWORD

MANIFESTS = Path(__file__).parents[2] / "k8s" / "base" / "redis"
SECRET = 'pa"ss $word\\'
MEMORY_BYTES = 64 << 20


class OnlineStore:
    """The container of the StatefulSet, in a folder in place of its volumes and on a port of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._places = {"/etc/redis": "config", "/run/redis": "users", "/run/secrets/redis": "secret", "/data": "data"}
        for place, name in list(self._places.items()):
            (folder / name).mkdir()
            self._places[place] = str(folder / name)
        for name in ("redis.conf", "start.sh"):
            text = self._moved((MANIFESTS / name).read_text())
            (folder / "config" / name).write_text(text.replace("port 6379", f"port {self.port}"))
        (folder / "secret" / "password").write_text(SECRET)
        objects = yaml.safe_load_all((MANIFESTS / "redis.yaml").read_text())
        (store,) = [found for found in objects if found["kind"] == "StatefulSet"]
        (self.container,) = store["spec"]["template"]["spec"]["containers"]
        self.folder = folder
        self.start()

    def start(self) -> None:
        command = [self._moved(word) for word in self.container["command"]]
        environment = os.environ | {"MEMORY_BYTES": str(MEMORY_BYTES)}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=self.folder / "data")
        deadline = time.monotonic() + 20
        while self.probe("startupProbe") != 0:
            assert self.process.poll() is None, "Redis ended"
            assert time.monotonic() < deadline, "Redis does not start"
            time.sleep(0.05)

    def probe(self, name: str) -> int:
        command = [self._moved(word) for word in self.container[name]["exec"]["command"]]
        command[-1] = command[-1].replace("redis-cli", f"redis-cli -p {self.port}")
        return subprocess.run(command, capture_output=True, check=False).returncode

    def client(self, password: str | None = SECRET, **options) -> redis.Redis:
        return redis.Redis(port=self.port, password=password, retry=Retry(NoBackoff(), 0), **options)

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(20)

    def _moved(self, text: str) -> str:
        for place, folder in self._places.items():
            text = text.replace(place, shlex.quote(folder))
        return text


@pytest.fixture
def store(tmp_path):
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    running = OnlineStore(tmp_path)
    yield running
    running.process.kill()
    running.process.wait()


def test_only_the_password_opens_it(store):
    assert store.client().ping()
    with pytest.raises(redis.AuthenticationError):
        store.client("wrong").ping()
    with pytest.raises(redis.AuthenticationError):
        store.client(None).ping()


def test_the_password_is_on_no_command_line_and_in_no_file_but_its_own(store):
    client = store.client()
    client.set("key", "value")
    client.bgsave()
    assert SECRET.encode() not in Path(f"/proc/{store.process.pid}/cmdline").read_bytes()
    assert SECRET.encode() not in Path(f"/proc/{store.process.pid}/environ").read_bytes()
    holding = [path for path in store.folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holding == [store.folder / "secret" / "password"]


def test_a_client_cannot_harm_it(store):
    client = store.client()
    for command in ("FLUSHALL", "CONFIG GET dir", "SHUTDOWN", "ACL LIST", "KEYS *"):
        with pytest.raises(NoPermissionError):
            client.execute_command(*command.split())


def test_probes(store):
    assert store.probe("readinessProbe") == store.probe("livenessProbe") == 0
    store.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(redis.TimeoutError):
            store.client(socket_timeout=0.5).ping()
    finally:
        store.process.send_signal(signal.SIGCONT)
    store.end(signal.SIGTERM)
    assert store.probe("readinessProbe") != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_values_outlive_a_restart(store, number):
    store.client().hset("entity", "feature", "1.5")
    time.sleep(1.5)  # the log is synced every second
    store.end(number)
    store.start()
    assert store.client().hget("entity", "feature") == b"1.5"


def fill(client: redis.Redis, num_bytes: int) -> None:
    for number in range(num_bytes >> 20):
        client.set(f"blob{number}", b"x" * (1 << 20))


def test_a_full_store_refuses_writes_and_keeps_what_it_has(store):
    client = store.client()
    limit = client.info("memory")["maxmemory"]
    assert limit == MEMORY_BYTES // 100 * 60
    client.set("first", "kept")
    with pytest.raises(OutOfMemoryError):
        fill(client, 2 * limit)
    assert client.get("first") == b"kept"


def test_features_are_filled_and_read_through_it(store, tiny_dataset, tiny_schema, tiny_run, tmp_path, monkeypatch):
    """The commands that Feast needs are allowed."""
    monkeypatch.setenv(PASSWORD, SECRET)
    folder = tmp_path / "store"
    build_features(tiny_dataset, tiny_schema, 0, tmp_path / "frame", folder, f"redis://127.0.0.1:{store.port}/0")
    asked = ("5", [*map(str, range(40))])
    assert OnlineFeatures.load(folder).lookup(*asked) == OnlineFeatures.load(tiny_run.feature_store).lookup(*asked)
