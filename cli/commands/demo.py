"""`adapterhub demo`: the main job from training to a served merge, with numbers measured on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.options import examples


def join(app: typer.Typer) -> None:
    app.command(epilog=examples("demo", "demo --keep", "demo --data ./demo-data --fast"))(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running at the end.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder for what is made; default: a temporary one, which stays.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Train less: quicker, with worse numbers.")] = False,
) -> None:
    """Train small models and patches, then push, merge, port, serve and measure them."""
    from adapterhub.cli.demo import run

    run(keep, data, fast)
