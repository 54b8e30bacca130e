"""`adapterhub merge masks`: several tasks as one shared delta and a mask for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli import views
from adapterhub.cli.commands.merge import merge
from adapterhub.cli.options import MEMORY, AsJson, bytes_of, examples
from adapterhub.cli.output import show_json


def join(app: typer.Typer) -> None:
    """The command belongs to `merge`, which is joined already."""


@merge.command(
    epilog=examples(
        'merge masks "base + code + law" ./shared --input base=./base --input code=./code --input law=./law',
        'merge masks "base + code + law" ./shared --method tall --tall 0.4 --input ...',
        'merge run "base + lab/shared/code" --input base=./base --input lab/shared/code=./shared --out ./as-code',
    )
)
def masks(
    expression: Annotated[str, typer.Argument(help="The base plus a term for each task; a task is named after it.")],
    out: Annotated[Path, typer.Argument(help="Folder of the patches; must be empty or not exist.")],
    method: Annotated[str, typer.Option(help="emr, or tall.")] = "emr",
    tall: Annotated[float, typer.Option(help="λ of tall: above it fewer entries count for a task.")] = 0.6,
    inputs: Annotated[list[str] | None, typer.Option("--input", help="NAME=FOLDER for each name.")] = None,
    memory: Annotated[str, typer.Option(help="Memory it may use, such as 512MiB or 8GB.")] = MEMORY,
    as_json: AsJson = False,
) -> None:
    """Store several tasks of one base as a shared delta and one bit an entry for each task."""
    from adapterhub.cli import local

    result = local.masks(
        expression, local.named_folders(inputs or []), out, method=method, tall=tall, memory_bytes=bytes_of(memory)
    )
    if as_json:
        show_json(result)
    else:
        views.show_masks(result)
