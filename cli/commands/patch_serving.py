"""`adapterhub patch serveable` and `patch canary`: what an engine outside makes of a patch, told and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.commands.patch import patch
from adapterhub.cli.errors import REFUSED, Declined, Missing
from adapterhub.cli.options import AsJson, examples
from adapterhub.cli.output import say, show_fields, show_json, show_table


def join(app: typer.Typer) -> None:
    """The commands belong to `patch`, which is joined already."""


@patch.command(
    epilog=examples(
        "patch serveable ./my-lora --engine vllm@0.33.0 --base ./base",
        "patch serveable ./my-lora --engine sglang --base ./base --out ./for-sglang",
        "patch serveable ./my-lora --engine gguf --base ./base --json",
    )
)
def serveable(
    source: Annotated[Path, typer.Argument(metavar="PATCH", help="Folder of the patch.")],
    engine: Annotated[str, typer.Option(help="vllm@VERSION, sglang@VERSION or gguf; default version: the tested one.")],
    base: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the patch's base.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the adapter that the engine applies whole.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say tensor by tensor what an engine applies of a patch; exit code 4 where it does not serve all of it."""
    from adapterhub.cli import served

    if not source.is_dir():
        raise Missing(f"{source}: no such folder; name the patch's folder")
    try:
        found = served.serveable(source, engine, base=base, out=out)
    except FileExistsError as error:
        raise Declined(str(error)) from error
    if as_json:
        show_json(found)
    else:
        rows = ((one["tensor"], one["verdict"], one["as_is"], one["why"]) for one in found["tensors"])
        show_table(("tensor", "verdict", "as it is", "why"), rows)
        for doubt in found["doubts"]:
            say(f"note: {doubt}")
        say(_sentence(found), to_stdout=True)
        if "written" in found:
            say(f"{out}: the same deltas, largest error {found['written']['largest_error']:.1e}")
    if found["verdict"] == "not":
        raise typer.Exit(REFUSED)


def _sentence(found: dict[str, object]) -> str:
    """The verdict over all tensors, in words."""
    does = {
        "applies": "applies it",
        "refuses": "refuses it",
        "ignores": "ignores parts of it and tells nobody",
        "misapplies": "serves something else and tells nobody",
    }
    name = f"{found['engine']}@{found['version']}" if found["version"] else str(found["engine"])
    started = found["options"]
    options = f"; start it with {' '.join(started)}" if isinstance(started, tuple) and started else ""
    says = {"as is": "served as is", "after a rewrite": "served after a rewrite (--out)", "not": "not served"}
    return f"{name}: {says[str(found['verdict'])]}; as it is, the engine {does[str(found['as_is'])]}{options}"
