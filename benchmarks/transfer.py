"""Moving files, beside hashing and writing them, and beside nginx; and finding one model among 100,000.

    python benchmarks/transfer.py [--mib 1024] [--repos 100000]

Every figure is measured in this run against a real server process: the server's CPU seconds a GiB received, as a ratio
to hashing and writing the same bytes; curl's rate, as a ratio to nginx serving the same file; how far the server's
memory grew; one commit of 10,000 files; the time of `model_info` on SQLite and PostgreSQL. The clients are the
unmodified huggingface_hub and curl.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi
from sqlalchemy import create_engine, insert, select
from sqlmodel import SQLModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from adapterhub.hub.db import tables
from adapterhub.hub.db.tables import Repository, RepositoryName
from tests import servers
from tests.clients.server import Server, running

PIECE_BYTES = 1 << 20
MIB = 1 << 20
CLIENTS = 16
SMALL_FILES = 10_000
ASKED = 1000

PUSH = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[1])
api.upload_file(path_or_fileobj=sys.argv[2], path_in_repo="model.safetensors.bin", repo_id=sys.argv[1])
"""

PUSH_MANY = """
import sys
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
api.create_repo(sys.argv[1])
files = [CommitOperationAdd(f"{n % 100}/{n}.txt", b"file %d" % n) for n in range(int(sys.argv[2]))]
api.create_commit(sys.argv[1], files, commit_message="many")
"""


@dataclass(frozen=True)
class Cost:
    """What something took: seconds on the clock, CPU seconds of the server, bytes its memory grew by."""

    wall_s: float
    cpu_s: float
    grown_bytes: int


def cpu_seconds(pid: int) -> float:
    """CPU seconds that the process has used, in itself and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(server: Server, program: str, *arguments: str, **environment: str) -> Cost:
    """What a client program of its own costs the server."""
    before_bytes, before_s, start = server.reset_peak_memory(), cpu_seconds(server.process.pid), time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        known = {"HF_ENDPOINT": server.url, "HF_TOKEN": server.token, "HF_HOME": home}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        subprocess.run(
            [sys.executable, "-c", program, *arguments], env={**os.environ, **known, **quiet, **environment}, check=True
        )
    wall_s = time.perf_counter() - start
    return Cost(wall_s, cpu_seconds(server.process.pid) - before_s, server.peak_memory() - before_bytes)


def floor(source: Path, target: Path) -> float:
    """CPU seconds to read, hash and write the file once, durably."""
    start, hashed = time.process_time(), hashlib.sha256()
    with source.open("rb") as original, target.open("wb") as copy:
        while piece := original.read(PIECE_BYTES):
            hashed.update(piece)
            copy.write(piece)
        copy.flush()
        os.fsync(copy.fileno())
    return time.process_time() - start


@contextmanager
def nginx(folder: Path, root: Path) -> Iterator[str | None]:
    """The URL under which nginx serves `root`, None where there is no nginx."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield None
        return
    [port] = servers.free_ports(1)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; "
        f"{'user root;' if os.geteuid() == 0 else ''} events {{}} http {{ access_log off; sendfile on; {temporary} "
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
    )
    process = subprocess.Popen([program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        yield url
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str) -> None:
    """Return once something answers there."""
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx.get(url)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def curl(url: str, token: str, clients: int) -> float:
    """Bytes a second that so many curls fetch together; the best of three."""
    command = ["curl", "-sS", "-f", "-o", os.devnull, "-w", "%{size_download}", "-H", f"Authorization: Bearer {token}"]
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        running = [subprocess.Popen([*command, url], stdout=subprocess.PIPE, text=True) for _ in range(clients)]
        received = [int(one.communicate()[0]) for one in running]
        best = max(best, sum(received) / (time.perf_counter() - start))
    return best


def fill(url: str, count: int) -> list[str]:
    """`count` copies of the repository ann/template, straight into the database; their names."""
    engine = create_engine(url)
    metadata = SQLModel.metadata
    with engine.begin() as connection:
        template = connection.execute(select(Repository.__table__)).mappings().one()  # type: ignore[attr-defined]
        copied = {
            table: connection.execute(table.select()).mappings().all()
            for table in metadata.sorted_tables
            if "repository_id" in table.c and table.name != "repository_name"
        }
        names = [f"ann/model-{number}" for number in range(count)]
        for start in range(0, count, 500):
            some = [(tables.new_id(), name) for name in names[start : start + 500]]
            rows = [{**template, "id": new, "full_name": name, "name_key": name} for new, name in some]
            connection.execute(insert(Repository), rows)
            known = [
                {"name_key": name, "full_name": name, "repository_id": new, "since": tables.now()} for new, name in some
            ]
            connection.execute(insert(RepositoryName), known)
            for table, originals in copied.items():
                copies = [{**row, "repository_id": new, **_own(table)} for new, _ in some for row in originals]
                if copies:
                    connection.execute(insert(table), copies)
    engine.dispose()
    return names


def _own(table: Any) -> dict[str, str]:
    """A fresh id for each copy where rows have one."""
    return {"id": tables.new_id()} if list(table.primary_key.columns.keys()) == ["id"] else {}


def info_ms(server: Server, names: list[str]) -> list[float]:
    """Milliseconds of model_info for ASKED of the names, over one connection."""
    api, taken = HfApi(endpoint=server.url, token=server.token), []
    for name in names[:: max(1, len(names) // ASKED)]:
        start = time.perf_counter()
        api.model_info(name)
        taken.append((time.perf_counter() - start) * 1000)
    return taken


def measure_lists(folder: Path, name: str, count: int, **settings: str) -> None:
    """Print how long `model_info` takes among `count` repositories."""
    with running(folder / name, admin_name="ann", **settings) as server:
        api = HfApi(endpoint=server.url, token=server.token)
        api.create_repo("ann/template")
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="ann/template")
        url = settings.get("database_url") or f"sqlite:///{folder / name / 'adapterhub.db'}"
        names = fill(url, count)
        taken = info_ms(server, names)
        p95 = statistics.quantiles(taken, n=20)[-1]
        print(f"model_info among {count:,} on {name:11} p50 {statistics.median(taken):6.1f} ms   p95 {p95:6.1f} ms")


def measure_uploads(folder: Path, source: Path) -> None:
    """Print what uploads cost, beside the floor, and how fast curl gets the file, beside nginx."""
    gib = source.stat().st_size / (1 << 30)
    ground = min(floor(source, folder / "copy") for _ in range(2)) / gib
    print(f"floor: hash and write        {ground:6.2f} CPU s/GiB")
    small = folder / "small.bin"
    small.write_bytes(os.urandom(MIB))
    with running(folder / "data", admin_name="ann") as server:
        for name, aim, environment in (("LFS", 1.5, {"HF_HUB_DISABLE_XET": "1"}), ("Xet", 2.5, {})):
            # a server's first requests compile and load what later ones use: a fifth of a second, whatever the size
            cost(server, PUSH, f"ann/first-{name.lower()}", str(small), **environment)
            found = cost(server, PUSH, f"ann/{name.lower()}", str(source), **environment)
            ratio = found.cpu_s / gib / ground
            told = (
                f"{found.cpu_s / gib:6.2f} CPU s/GiB   {ratio:4.2f} x floor (aim {aim})   client {found.wall_s:5.1f} s"
            )
            print(f"{name} upload of {gib:.2f} GiB      {told}   memory +{found.grown_bytes / MIB:.0f} MiB")
        measure_downloads(folder, server, source)
        found = cost(server, PUSH_MANY, "ann/many", str(SMALL_FILES))
        print(f"{SMALL_FILES:,} files, one commit    {found.wall_s:6.1f} s (aim 20)   server {found.cpu_s:.1f} CPU s")
        info = httpx.Client(base_url=server.url)
        start = time.perf_counter()
        for _ in range(200):
            info.get("/health")
        print(f"loopback requests            {200 / (time.perf_counter() - start):6.0f} a second")


def measure_downloads(folder: Path, server: Server, source: Path) -> None:
    with nginx(folder, source.parent) as peer:
        for clients in (1, CLIENTS):
            ours = curl(f"{server.url}/ann/lfs/resolve/main/model.safetensors.bin", server.token, clients)
            told = f"{clients:2} curl: {ours / 1e9:5.2f} GB/s"
            if peer:
                theirs = curl(f"{peer}/{source.name}", "none", clients)
                told += f"   nginx {theirs / 1e9:5.2f} GB/s   {ours / theirs:4.2f} of nginx (aim 0.5)"
            print(told)


def print_machine(folder: Path) -> None:
    """The quantities by which a quiet machine is known."""
    block = bytes(64 * MIB)
    start = time.perf_counter()
    hashlib.sha256(block).digest()
    hashing = len(block) / (time.perf_counter() - start) / 1e9
    with (folder / "synced").open("wb") as file:
        start = time.perf_counter()
        for _ in range(50):
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        syncs = 50 / (time.perf_counter() - start)
    print(f"sha256 {hashing:.2f} GB/s, {syncs:.0f} fsyncs/s, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--mib", type=int, default=1024, help="size of the large file")
    arguments.add_argument("--repos", type=int, default=100_000, help="repositories among which one is looked up")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print_machine(folder)
        (folder / "www").mkdir()
        source = folder / "www" / "large.bin"
        with source.open("wb") as file:
            for _ in range(asked.mib):
                file.write(os.urandom(MIB))
        measure_uploads(folder, source)
        measure_lists(folder, "SQLite", asked.repos)
        with servers.postgres_server() as postgres:
            if postgres is None:
                print("PostgreSQL: not installed here, not measured")
                return
            with postgres.database() as url:
                measure_lists(folder, "PostgreSQL", asked.repos, database_url=url)


if __name__ == "__main__":
    main()
