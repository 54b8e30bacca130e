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


@merge.command(
    epilog=examples(
        "merge moe ./base ./experts --expert python=./code --expert law=./law",
        "merge moe ./base ./experts --expert python=./code --expert law=./law --route trained --text python=code.jsonl "
        "--text law=law.jsonl",
    )
)
def moe(
    base: Annotated[Path, typer.Argument(help="Folder of the model that all were trained on.")],
    out: Annotated[Path, typer.Argument(help="Folder of the routed patch; must not exist.")],
    experts: Annotated[list[str], typer.Option("--expert", help="DOMAIN=FOLDER of a LoRA; two or more.")],
    route: Annotated[
        str,
        typer.Option(
            help="declared: each row of a call says its domain. trained: a router mixes the experts at each token."
        ),
    ] = "declared",
    texts: Annotated[
        list[str] | None,
        typer.Option("--text", help='DOMAIN=FILE of JSON lines {"text"} to train the router on; one for each domain.'),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make one patch of several LoRAs, among which the declared domain of a call or a trained router chooses."""
    from adapterhub.cli.experts import experts as joined

    result = joined(base, experts, out, route=route, texts=texts or ())
    if as_json:
        show_json(result)
        return
    domains = ", ".join(f"{number}: {domain}" for domain, number in result["domains"].items())
    fields = [("folder", out), ("domains", domains), ("modules", result["modules"]), ("rank", result["rank"])]
    if "accuracy" in result:
        worst = result["least_accurate"]
        fields.append(("held-out tokens routed right", f"{result['accuracy']:.1%} on average"))
        fields.append(("least", f"{worst['accuracy']:.1%} at {worst['module']}"))
    show_fields(fields)
