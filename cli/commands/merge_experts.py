"""`adapterhub merge moe`: several LoRAs as one routed patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.commands.merge import merge
from adapterhub.cli.options import AsJson, examples
from adapterhub.cli.output import show_fields, show_json


def join(app: typer.Typer) -> None:
    """The command belongs to `merge`, which is joined already."""


@merge.command(epilog=examples("merge moe ./base ./experts --expert python=./code --expert law=./law"))
def moe(
    base: Annotated[Path, typer.Argument(help="Folder of the model that all were trained on.")],
    out: Annotated[Path, typer.Argument(help="Folder of the routed patch; must not exist.")],
    experts: Annotated[list[str], typer.Option("--expert", help="DOMAIN=FOLDER of a LoRA; two or more.")],
    route: Annotated[str, typer.Option(help="declared: each row of a call says its domain.")] = "declared",
    as_json: AsJson = False,
) -> None:
    """Make one patch of several LoRAs, of which the declared domain of a call chooses one."""
    from adapterhub.cli import local

    result = local.experts(base, experts, out, route=route)
    if as_json:
        show_json(result)
        return
    domains = ", ".join(f"{number}: {domain}" for domain, number in result["domains"].items())
    show_fields([("folder", out), ("domains", domains), ("modules", result["modules"]), ("rank", result["rank"])])
