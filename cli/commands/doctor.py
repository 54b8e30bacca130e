"""`adapterhub doctor`: what this machine and the server have, and what is wrong with it."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from adapterhub.cli.errors import REFUSED, CliError
from adapterhub.cli.options import AsJson, connect, examples, settings
from adapterhub.cli.output import show_json_lines, show_table
from adapterhub.hub.web.wording import bytes_short

if TYPE_CHECKING:
    from adapterhub.cli.client import Client

PACKAGES = ("adapterhub", "torch", "transformers", "peft", "safetensors", "huggingface-hub", "hf-xet")
LOW_DISK_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing looked at. problem: what to do about it, "" where all is well."""

    what: str
    found: str
    problem: str = ""


def join(app: typer.Typer) -> None:
    app.command(epilog=examples("doctor", "doctor --json"))(doctor)


def doctor(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Check versions, device, disk, server and token; exit code 4 where there is a problem."""
    client = connect(ctx)
    checks: tuple[Callable[[], Finding], ...] = (
        _device,
        _disk,
        lambda: _server(client),
        lambda: _token(client),
    )
    findings = [Finding("python", platform.python_version()), *map(_package, PACKAGES), *(check() for check in checks)]
    if as_json:
        show_json_lines(map(asdict, findings))
    else:
        show_table(("what", "found", "problem"), ((one.what, one.found, one.problem) for one in findings))
    if any(one.problem for one in findings):
        raise typer.Exit(REFUSED)


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", f"pip install {name}")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    return Finding("device", f"cpu, {torch.get_num_threads()} threads")


def _disk() -> Finding:
    folder: Path = settings({}).data
    here = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(here).free
    problem = f"less than {bytes_short(LOW_DISK_BYTES)} free" if free < LOW_DISK_BYTES else ""
    return Finding("disk", f"{bytes_short(free)} free for {folder}", problem)


def _server(client: Client) -> Finding:
    try:
        health = client.get("/health")
    except CliError as error:
        return Finding("server", client.endpoint, str(error))
    return Finding("server", f"{client.endpoint}, version {health['version']}")


def _token(client: Client) -> Finding:
    if client.token is None:
        return Finding("token", "none", "only public repositories can be read; run `adapterhub login`")
    try:
        me = client.get("/api/whoami-v2")
    except CliError as error:
        return Finding("token", "not checked", str(error))
    return Finding("token", f"{me['name']}, {me['auth']['accessToken']['role']}")
