"""`adapterhub export`: repositories written into plain folders that need nothing of ours to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli import views
from adapterhub.cli.errors import REFUSED, Missing, Misused
from adapterhub.cli.options import AsJson, bytes_shown, connect, examples
from adapterhub.cli.output import Waiting, show_json
from adapterhub.errors import AdapterHubError

if TYPE_CHECKING:
    from adapterhub.cli.client import Client
    from adapterhub.cli.exported import ExportedRepository
    from adapterhub.cli.takeout import Saved

MOST_REPOSITORIES = 1_000_000


def join(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "export demo/code ./backup", "export demo ./backup", "export --all ./backup", "export --check ./backup"
        )
    )(export)


def export(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(help="namespace/name or namespace; with --all and --check: the folder.")],
    dest: Annotated[Path | None, typer.Argument(help="The folder.", show_default=False)] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every repository that you may read.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Verify an export, without a server.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export repositories with all their branches and tags; run it again to go on, or for what came since."""
    if (dest is None) != (all_ or check) or (all_ and check):
        raise Misused("write export NAME FOLDER, export --all FOLDER or export --check FOLDER")
    if check:
        _check(Path(what), as_json)
        return
    client = connect(ctx)
    names = _names(client, "" if all_ else what)
    states = [_export_one(client, name, dest or Path(what), as_json) for name in names]
    if "failed" in states:
        raise typer.Exit(REFUSED)


def _names(client: Client, what: str) -> Sequence[str]:
    """The repositories meant: one, those of a namespace, or, for "", all. Raises Missing where there are none."""
    if "/" in what:
        return [what]
    found = sorted(one["id"] for one in client.items("/api/patches", MOST_REPOSITORIES, author=what))
    if not found:
        raise Missing(f"{what or client.endpoint}: holds no repository that your token may read")
    return found


def _export_one(client: Client, name: str, dest: Path, as_json: bool) -> str:
    """How exporting one repository ended; what goes wrong with it stops no other."""
    from adapterhub.cli import exported, takeout

    saved = takeout.Saved(name)
    dest.mkdir(parents=True, exist_ok=True)
    try:
        there = exported.read_list(dest) if (dest / exported.MANIFEST).exists() else []
        with Waiting(f"export {name}") as waiting:
            done = takeout.save(client, name, dest, saved, bytes_shown(waiting))
        exported.write_list(dest, client.endpoint, _with(there, done))
        for before in (one for one in there if one.id == name):
            takeout.clear(dest, before, done)
    except (AdapterHubError, OSError) as error:
        saved.state = "failed"
        saved.problems.append(str(error))
    _show(saved, as_json)
    return saved.state


def _with(there: Sequence[ExportedRepository], done: ExportedRepository) -> list[ExportedRepository]:
    return sorted([*(one for one in there if one.id != done.id), done], key=lambda one: one.id)


def _check(dest: Path, as_json: bool) -> None:
    from adapterhub.cli import exported, takeout

    if not (dest / exported.MANIFEST).is_file():
        raise Missing(f"{dest}: no {exported.MANIFEST} lies there")
    is_broken = False
    with Waiting(f"check {dest}") as waiting:
        for saved in takeout.check(dest, bytes_shown(waiting)):
            _show(saved, as_json)
            is_broken |= bool(saved.problems)
    if is_broken:
        raise typer.Exit(REFUSED)


def _show(saved: Saved, as_json: bool) -> None:
    if as_json:
        show_json(asdict(saved))
    else:
        views.show_export(asdict(saved))
