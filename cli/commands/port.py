"""`adapterhub port`: patches carried from one base to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from adapterhub.cli import views
from adapterhub.cli.errors import Misused
from adapterhub.cli.options import AsJson, connect, examples, group, wait
from adapterhub.cli.output import show_json

OWN_BRANCH = "(own branch)"
"""What `--push` without a name stands for; no repository can be called so."""

port = group("port", "Carry patches from the base they were trained on to another one.")


def join(app: typer.Typer) -> None:
    app.add_typer(port)


class _PortCommand(TyperCommand):
    """Lets `--push` stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_push_value(args))


def with_push_value(args: Sequence[str]) -> list[str]:
    """The arguments, a `--push` that no value follows given OWN_BRANCH as its value."""
    found: list[str] = []
    for position, arg in enumerate(args):
        following = args[position + 1] if position + 1 < len(args) else "--"
        found.append(f"--push={OWN_BRANCH}" if arg == "--push" and following.startswith("-") else arg)
    return found


@port.command(
    cls=_PortCommand,
    epilog=examples(
        "port run demo/code --to demo/base-v2 --push",
        "port run demo/code@v1 --to demo/base-v2 --push demo/code-v2",
        "port run demo/code --to demo/base-v2 --report-only",
    ),
)
def run(
    ctx: typer.Context,
    patch: Annotated[str, typer.Argument(help="The patch: namespace/name, or namespace/name@revision.")],
    to: Annotated[str, typer.Option(help="The base to carry it to.")],
    push: Annotated[
        str,
        typer.Option(
            metavar="[NAME]",
            show_default=False,
            help="Repository for the result; without a name, and by default: a branch ported/... of the patch's own.",
        ),
    ] = OWN_BRANCH,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only measure; commit nothing.")] = False,
    strategy: Annotated[str, typer.Option(help="How it is carried.")] = "direct",
    as_json: AsJson = False,
) -> None:
    """Carry a patch to another base, with a report on whether it will still work there."""
    if report_only and push != OWN_BRANCH:
        raise Misused("--report-only commits nothing, so it does not go together with --push NAME")
    target: bool | str = not report_only if push == OWN_BRANCH else push
    client = connect(ctx)
    job = client.post("/api/ports", {"patch": patch, "to": to, "push": target, "strategy": strategy})
    result = wait(client, job, "port")
    if as_json:
        show_json(result)
    else:
        views.show_port(result)
