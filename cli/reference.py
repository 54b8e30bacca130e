"""docs/cli.md, made from the help of every command: `python -m adapterhub.cli.reference > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from adapterhub.cli.errors import EXIT_CODES
from adapterhub.cli.main import build
from adapterhub.cli.output import say

INTRO = """# The command line

This page is made from the help of each command: `python -m adapterhub.cli.reference > docs/cli.md`.

Data goes to standard output; talk, progress and errors go to standard error. An error is one line; `--debug` before the
command, or `ADAPTERHUB_DEBUG=1`, shows the traceback too. Text that others wrote is printed without control characters.

## Server and token

Commands that ask a server find it by `--endpoint`, `ADAPTERHUB_ENDPOINT`, `HF_ENDPOINT`, else `http://127.0.0.1:8000`,
and send the token of `--token`, `ADAPTERHUB_TOKEN`, `HF_TOKEN`, else the one that `adapterhub login` or `hf auth login`
stored. `patch inspect`, `patch kinds`, `recipe parse`, `recipe operators`, `merge methods`, `merge run --out`,
`merge masks`, `merge moe` and `merge curve` need no server, nor does `merge tune-weights` with `--input`.

## JSON

Every command that reads takes `--json`. One thing is one line of JSON; a list is one object a line. The objects are
those of the REST API, which the server explains at `/docs`:

| command | object |
|---|---|
| `patch list`, `patch show` | an item of `GET /api/patches`; `GET /api/patches/{repo}` |
| `patch push` | `repo`, `commit`, `url`, `kind` |
| `patch inspect` | the facts of one patch or model: `kind`, `reason`, `path`, `files`, `base`, `problems`, ... |
| `merge run`, `port run` | the `result` of the job: `repo`, `branch`, `commit`, `report`, ... |
| `merge run --out` | `folder`, `recipe_digest`, `files`, `report` |
| `merge tune-weights` | `recipe`, `recipe_digest`, `point`, `score`, `start`, `evaluations`, `ended`, ... |
| `merge masks` | `folder`, `method`, `tasks` (`name`, `scale`, `selected`, `error`, `digest`) |
| `merge moe` | `folder`, `route`, `domains` (numbers by name), `modules`, `rank` |
| `merge curve` | `points` (`strength`, `gain`, `retention`, ...), `knee`, `recipe` |
| `merge run --no-wait`, `job show`, `job list`, `job watch`, `job cancel` | a job, as in `GET /api/jobs/{id}` |
| `recipe explain`, `recipe parse` | as `POST /api/recipes/explain`, `POST /api/recipes/parse` |
| `recipe show` | as `GET /api/recipes/{digest}` |
| `import` | each item: `source`, `repo`, `kind`, `state`, `commits`, `sent_bytes`, `problems`, `warnings`, ... |
| `export` | each repository: `repo`, `state`, `refs`, `files`, `received_bytes`, `kept_bytes`, `problems` |
| `whoami` | `GET /api/whoami-v2` |
| `token create`, `token list` | as `POST /api/tokens`; an item of `GET /api/tokens` |
| `org create`, `org list`, `org member list` | as `POST /api/organisations`; items of its `GET` and of its `members` |
| `admin user add`, `admin user list` | as `POST /api/admin/users`; an item of `GET /api/admin/users` |
| `merge methods`, `patch kinds` | `name`, `title`, `summary`, `source`; of a method `is_experimental`, `parameters` |
| `recipe operators` | `name`, `title`, `summary`, `source`, `usage`, `parameters` |
| `doctor` | `what`, `found`, `problem` |
"""


def page() -> str:
    """The page as Markdown, without the end of its last line."""
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    parts = [INTRO, f"## Exit codes\n\n| code | meaning |\n|---|---|\n{codes}\n"]
    root: Any = typer.main.get_command(build())
    parts += [
        "## Options before the command\n\n"
        + "\n".join(_parameter(p) for p in root.params if "completion" not in p.name)
    ]
    parts += ["\n".join(_command(path, command)) for path, command in _leaves("adapterhub", root)]
    return "\n\n".join(part.rstrip() for part in parts)


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words that call it."""
    for name, inner in command.commands.items():
        called = f"{path} {name}"
        if hasattr(inner, "commands"):
            yield from _leaves(called, inner)
        else:
            yield called, inner


def _command(path: str, command: Any) -> Iterator[str]:
    # asking for the help completes what a command explains only when it is asked
    command.get_help(command.context_class(command, info_name=path))
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join(_name(one) if one.required else f"[{_name(one)}]" for one in arguments)
    yield f"## {path}\n"
    yield f"{command.help.strip()}\n"
    yield f"    {path} [OPTIONS] {usage}".rstrip() + "\n"
    yield from map(_parameter, command.params)
    for block in (command.epilog or "").replace("\b\n", "").split("\n\n"):
        title, _, lines = block.partition("\n")
        if lines:
            yield f"\n{title}\n\n" + "\n".join("    " + line.strip() for line in lines.splitlines())


def _parameter(one: Any) -> str:
    told = " ".join((one.help or "").split())
    is_told = one.param_type_name == "option" and one.show_default
    default = is_told if isinstance(is_told, str) else one.default if is_told and not one.is_flag else None
    return f"- `{_name(one)}`: {told}" + (f" Default: `{default}`." if default else "")


def _name(one: Any) -> str:
    if one.param_type_name == "argument":
        return str(one.name).upper()
    flag = ", ".join(one.opts)
    return flag if one.is_flag else f"{flag} {(one.metavar or one.name).upper()}"


if __name__ == "__main__":
    say(page(), to_stdout=True)
