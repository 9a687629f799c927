"""Data versions on a real S3 endpoint and through a real sshd, and what is said when they will not have us."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
import requests
from dvc.config import Config
from dvc.repo import Repo
from kfp import dsl
from moto.server import ThreadedMotoServer

from narrowcast.components.data import remotes
from narrowcast.components.data.component import checkout as checkout_step
from narrowcast.components.data.remotes import Remote, object_path
from narrowcast.components.data.versions import checkout, resolved, snapshot
from narrowcast.errors import NarrowcastError
from narrowcast.records import StepRecord, digest

SSHD = Path("/usr/sbin/sshd")
AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A home of its own, so that no key, known host or credential of this machine's user is found."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for name in (*AWS, "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def project(tmp_path) -> Path:
    """A Git and DVC checkout with a folder of raw data."""
    folder = tmp_path / "project"
    folder.mkdir()
    for command in (["init", "-q"], ["config", "user.name", "Test"], ["config", "user.email", "test@example.invalid"]):
        run(folder, "git", *command)
    Repo.init(str(folder)).close()
    write_clicks(folder, "user,item\n1,2\n")
    return folder


def run(folder: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_clicks(project: Path, text: str) -> Path:
    shop = project / "data" / "shop"
    (shop / "more").mkdir(parents=True, exist_ok=True)
    (shop / "clicks.csv").write_text(text)
    (shop / "more" / "items.csv").write_text("item\n2\n")
    return shop


def set_remote(project: Path, address: str, **settings: str) -> None:
    """The checkout's default remote; its settings go to the config that Git does not keep."""
    config = Config(str(project / ".dvc"))
    with config.edit("repo") as shared:
        shared["core"] = {"remote": "store"}
        shared["remote"] = {"store": {"url": address}}
    with config.edit("local") as own:
        own["remote"] = {"store": {"url": address, **settings}}


class S3:
    """An S3 endpoint that checks credentials, with a bucket `data`, an account that may all and one that may read."""

    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        anybody = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=self.url, **anybody).create_bucket(Bucket="data")
        iam = boto3.client("iam", endpoint_url=self.url, **anybody)
        self.all = self._account(iam, "writer", ["s3:*"])
        self.read_only = self._account(iam, "reader", ["s3:Get*", "s3:List*"])
        self.check_credentials("0")

    def check_credentials(self, after_requests: str) -> None:
        """It does for all servers of this process."""
        requests.post(f"{self.url}/moto-api/reset-auth", data=after_requests, timeout=10)

    def stop(self) -> None:
        self.check_credentials("inf")
        self.server.stop()

    def _account(self, iam, name: str, actions: list[str]) -> dict[str, str]:
        allow = {"Effect": "Allow", "Action": actions, "Resource": ["arn:aws:s3:::*"]}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return self.environment(key["AccessKeyId"], key["SecretAccessKey"])

    def environment(self, key: str, secret: str) -> dict[str, str]:
        return dict(zip(AWS, (key, secret, "", self.url, "eu-central-1"), strict=True))


@pytest.fixture(scope="module")
def s3_endpoint():
    endpoint = S3()
    yield endpoint
    endpoint.stop()


class Sshd:
    """A real sshd on a free port of 127.0.0.1, with a host key and one user key of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.key, self.host_key = folder / "key", folder / "host_key"
        for path in (self.key, self.host_key):
            make_key(path)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it to start as root
        (folder / "config").write_text(
            "\n".join(
                (
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self.host_key}",
                    f"AuthorizedKeysFile {self.key}.pub",
                    "PidFile none",
                    "StrictModes no",
                    "UsePAM no",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    "PermitRootLogin yes",
                    "Subsystem sftp internal-sftp " + " ".join(options),
                )
            )
        )
        log = folder / "log"
        self.process = subprocess.Popen([SSHD, "-D", "-E", log, "-f", folder / "config"])
        deadline = time.monotonic() + 20
        while "listening" not in (log.read_text() if log.exists() else ""):
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def address(self, folder: Path) -> str:
        return f"ssh://127.0.0.1:{self.port}{folder}"

    def introduce(self, home: Path) -> None:
        """Have the user of `home` know this host."""
        (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {read_public(self.host_key)}")


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def read_public(key: Path) -> str:
    return key.with_name(key.name + ".pub").read_text()


@pytest.fixture
def start_sshd(tmp_path):
    """Starts an `Sshd` with options of its SFTP server."""
    if not SSHD.exists():
        pytest.skip("sshd is not installed (Debian: apt-get install openssh-server)")
    with contextlib.ExitStack() as started:

        def start(*options: str) -> Sshd:
            sshd = Sshd(tmp_path / f"sshd-{'-'.join(options)}", *options)
            started.callback(sshd.process.wait)
            started.callback(sshd.process.kill)
            return sshd

        yield start


def set_environment(monkeypatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["s3", "ssh"])
def address(request, project, tmp_path, home, monkeypatch) -> str:
    """A remote of each kind that works, the checkout's default; its key is found as ssh finds it."""
    if request.param == "s3":
        set_environment(monkeypatch, request.getfixturevalue("s3_endpoint").all)
        made = f"s3://data/{tmp_path.name}"
    else:
        sshd = request.getfixturevalue("start_sshd")()
        sshd.introduce(home)
        (home / ".ssh" / "config").write_text(f"Host 127.0.0.1\n  IdentityFile {sshd.key}\n")
        made = sshd.address(tmp_path / "remote")
    set_remote(project, made)
    return made


def test_snapshot_wipe_and_pull_give_the_same_md5(address, project, tmp_path, monkeypatch):
    shop = project / "data" / "shop"
    before = digest(shop)
    first = snapshot(shop)
    write_clicks(project, "user,item\n1,2\n3,4\n")
    second = snapshot(shop)
    after = digest(shop)
    assert first != second

    shutil.rmtree(shop)
    shutil.rmtree(project / ".dvc" / "cache")
    run(project, "dvc", "pull", "-q")
    assert digest(shop) == after

    shutil.rmtree(project)
    pod = tmp_path / "pod"  # neither Git nor DVC here
    pod.mkdir()
    monkeypatch.chdir(pod)
    assert checkout(first, address, pod / "first") == first
    assert digest(pod / "first") == before
    assert checkout("latest:shop", address, pod / "latest") == second
    assert digest(pod / "latest") == after
    assert StepRecord.load(pod / "latest").details["version"] == second
    assert resolved("latest:shop", address) == second
    run(pod, "narrowcast", "data", "checkout", "latest:shop", "by-command", "--remote", address)
    assert digest(pod / "by-command") == after
    with pytest.raises(NarrowcastError, match=r"no snapshot of a folder 'shoe' \(it has: shop\)"):
        checkout("latest:shoe", address, pod / "shoe")


def test_gc_and_push_leave_the_pointer_alone(address, project, tmp_path):
    shop = project / "data" / "shop"
    first = snapshot(shop)
    write_clicks(project, "user,item\n5,6\n")
    second = snapshot(shop)
    with Repo(str(project)) as repo:
        repo.gc(workspace=True, cloud=True, force=True)
        repo.push()
    assert checkout("latest:shop", address, tmp_path / "latest") == second
    with pytest.raises(NarrowcastError, match=f"{first} is not on DVC remote"):
        checkout(first, address, tmp_path / "first")


def refusal(project: Path, address: str, tmp_path: Path, capsys) -> str:
    """What `data snapshot`, `data checkout` and the checkout step say within seconds, which is one sentence."""
    set_remote(project, address)
    told = []
    started = time.monotonic()
    with pytest.raises(NarrowcastError) as error:
        snapshot(project / "data" / "shop")
    told.append(str(error.value))
    with pytest.raises(NarrowcastError) as error:
        checkout("latest:shop", address, tmp_path / "out")
    told.append(str(error.value))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        checkout_step.python_func("0" * 32 + ".dir", address, dsl.Artifact(uri=str(tmp_path / "out")))
    told.append(capsys.readouterr().err.strip().removeprefix("error: "))
    assert time.monotonic() - started < 60
    assert not (tmp_path / "out").exists()
    (reason,) = {re.fullmatch(rf"cannot (?:read|use) DVC remote {address}: (.*)", line)[1] for line in told}
    return reason


@pytest.mark.parametrize(
    ("changes", "bucket", "sentence"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "data", "there are no credentials: set AWS_ACCESS"),
        ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN000000000"}, "data", "the credentials are refused (The AWS Access Key Id"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "data", "the credentials are refused (The request signature"),
        ({}, "nothing", "its bucket does not exist: create it, or mend the address"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "data",
            'it cannot be reached (Could not connect to the endpoint URL: "http://127.0.0.1:9")',
        ),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9"}, "data", "Invalid endpoint: 127.0.0.1:9: mend AWS_ENDPOINT_URL"),
    ],
    ids=["missing", "unknown", "wrong", "bucket", "unreachable", "endpoint"],
)
def test_s3_that_will_not_have_us(s3_endpoint, project, tmp_path, monkeypatch, capsys, changes, bucket, sentence):
    for name, value in (s3_endpoint.all | changes).items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    address = f"s3://{bucket}/some"
    assert refusal(project, address, tmp_path, capsys).startswith(sentence)


def test_s3_that_takes_connections_and_says_nothing(s3_endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(remotes, "ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_environment(monkeypatch, s3_endpoint.all)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(NarrowcastError, match=r"it cannot be reached \(no answer in time\)"):
            checkout("latest:shop", "s3://data/some", tmp_path / "out")


def test_an_account_that_may_only_read(s3_endpoint, project, tmp_path, monkeypatch):
    address = f"s3://data/{tmp_path.name}"
    set_remote(project, address)
    set_environment(monkeypatch, s3_endpoint.all)
    version = snapshot(project / "data" / "shop")
    set_environment(monkeypatch, s3_endpoint.read_only)
    assert checkout("latest:shop", address, tmp_path / "shop") == version
    write_clicks(project, "user,item\n7,8\n")
    with pytest.raises(NarrowcastError, match=r"cannot push to DVC remote .*: permission is denied \(Access Denied\)"):
        snapshot(project / "data" / "shop")
    assert resolved("latest:shop", address) == version
    assert version.removesuffix(".dir") in run(project, "git", "show", "HEAD:data/shop.dvc")


def test_settings_of_dvcs_config_are_found_by_address(s3_endpoint, project, tmp_path, monkeypatch):
    given = s3_endpoint.all
    address = f"s3://data/{tmp_path.name}"
    set_remote(
        project,
        address,
        endpointurl=s3_endpoint.url,
        access_key_id=given["AWS_ACCESS_KEY_ID"],
        secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
    )
    version = snapshot(project / "data" / "shop")
    monkeypatch.chdir(project)
    checkout(version, address, tmp_path / "shop")
    assert digest(tmp_path / "shop") == digest(project / "data" / "shop")


def test_what_a_remote_lost_comes_back_as_the_sentence_says(address, project, tmp_path):
    shop = project / "data" / "shop"
    version = snapshot(shop)
    remote = Remote(address)
    lost = object_path(digest(shop / "clicks.csv"))
    remote.write(lost, "other bytes")
    with pytest.raises(NarrowcastError, match=f"{lost} is damaged.*remove .* {object_path(version)}"):
        checkout(version, address, tmp_path / "shop")
    remote.fs.remove(remote.fs.join(remote.root, lost))
    with pytest.raises(NarrowcastError, match=f"{lost} is missing.*remove .* {object_path(version)}"):
        checkout(version, address, tmp_path / "shop")
    assert not (tmp_path / "shop").exists()
    remote.fs.remove(remote.fs.join(remote.root, object_path(version)))
    with Repo(str(project)) as repo:
        repo.push()
    checkout(version, address, tmp_path / "shop")
    assert digest(tmp_path / "shop") == digest(shop)


def test_ssh_that_will_not_have_us(start_sshd, project, tmp_path, home, capsys):
    sshd = start_sshd()
    address = sshd.address(tmp_path / "remote")

    assert "the host's key is not the one in ~/.ssh/known_hosts" in refusal(project, address, tmp_path, capsys)
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {read_public(sshd.key)}")
    assert "the host's key is not the one in ~/.ssh/known_hosts" in refusal(project, address, tmp_path, capsys)
    sshd.introduce(home)
    assert "the host lets us not in (Permission denied for user" in refusal(project, address, tmp_path, capsys)
    make_key(home / ".ssh" / "id_ed25519")
    assert "the host lets us not in (Permission denied for user" in refusal(project, address, tmp_path, capsys)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"ssh://127.0.0.1:{closed.getsockname()[1]}/remote"
        assert "it cannot be reached ([Errno 111] Connect call failed" in refusal(project, address, tmp_path, capsys)


def test_ssh_that_only_reads_or_whose_key_is_not_there(start_sshd, project, tmp_path, home):
    sshd = start_sshd("-R")
    sshd.introduce(home)
    address = sshd.address(tmp_path / "remote")
    set_remote(project, address, keyfile=str(sshd.key))
    with pytest.raises(NarrowcastError, match=r"cannot push to DVC remote .*: permission is denied"):
        snapshot(project / "data" / "shop")
    set_remote(project, address, keyfile=str(tmp_path / "nothing"))
    with pytest.raises(NarrowcastError, match=r"No such file or directory: '.*nothing'.*DVC's `keyfile`"):
        snapshot(project / "data" / "shop")
