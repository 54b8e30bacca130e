"""What several commands share: --json, the server they ask, waiting for a job, the service's settings."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.client import Client, outcome
from adapterhub.cli.errors import Misused
from adapterhub.cli.output import Waiting, say, show_json

if TYPE_CHECKING:
    from adapterhub.hub.settings import Settings

MEMORY = "2GiB"
"""What a merge on this machine may use, unless somebody says otherwise."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="A recipe file in place of an expression; mergekit's files are.")
]


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def bytes_of(text: str) -> int:
    """The number of bytes that a text such as 2GiB, 512 MB or 1000000 means."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?i?B)?", text.strip(), re.IGNORECASE)
    unit = (found[2] or "").lower() if found else "?"
    if found is None or unit not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no size; write one as 2GiB, 512MiB or 2GB")
    return int(float(found[1]) * _UNITS[unit])


def group(name: str, help: str) -> typer.Typer:
    """A noun, to which its verbs are added."""
    return typer.Typer(
        name=name,
        help=help,
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def examples(*lines: str) -> str:
    """The epilog of a help text: commands, one a line."""
    return "\b\nExamples:\n" + "\n".join("  adapterhub " + line for line in lines)


def connect(ctx: typer.Context) -> Client:
    """The server that the options before the command, or the environment, name."""
    return Client(ctx.obj.endpoint, ctx.obj.token)


def read_secret(title: str) -> str:
    """What the user types unseen, or the first line of standard input: never an argument, which others may see.

    Raises Misused where there is none.
    """
    if sys.stdin.isatty():
        return str(typer.prompt(title, hide_input=True, err=True)).strip()
    secret = sys.stdin.readline().strip()
    if not secret:
        raise Misused(f"{title.lower()}: nothing came on standard input; type it, or send it there")
    return secret


def wait(client: Client, job: dict[str, Any], title: str) -> dict[str, Any]:
    """The job's result, with its progress shown until it ends. Ctrl-C leaves the job running. Raises as `outcome`."""
    try:
        with Waiting(title) as waiting:
            waiting.update(job)
            for now in client.watch(str(job["id"])):
                waiting.update(job := now)
    except KeyboardInterrupt:
        say(f"job {job['id']} goes on; watch it with `adapterhub job watch {job['id']}`")
        raise
    return outcome(job)


def finish(
    client: Client,
    job: dict[str, Any],
    title: str,
    show: Callable[[dict[str, Any]], None],
    *,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Print a queued job, which goes on without us, or wait for it and show its result. Raises as `outcome`."""
    found = job if no_wait else wait(client, job, title)
    if as_json:
        show_json(found)
    elif no_wait:
        say(str(job["id"]), to_stdout=True)
        say(f"watch it with `adapterhub job watch {job['id']}`")
    else:
        show(found)


def bytes_shown(waiting: Waiting) -> Callable[[str, int], None]:
    """Shows how many bytes were dealt with, and of which file the last were."""
    from adapterhub.hub.web.wording import bytes_short

    done = 0

    def show(path: str, size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        told = f"{bytes_short(done)}, {path}"
        waiting.update({"state": "running", "progress": {"done": done, "total": 0, "message": told}})

    return show


def settings(given: dict[str, Any]) -> Settings:
    """The service's settings: those given, else the environment's. Raises Misused, naming the one that is wrong."""
    from pydantic import ValidationError

    from adapterhub.hub.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        told = (f"{' '.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors())
        raise Misused("; ".join(told)) from error
