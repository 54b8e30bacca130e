"""`adapterhub import`: repositories brought in from another hub, a folder, a bucket or a model registry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli import views
from adapterhub.cli.errors import REFUSED, Missing, Misused
from adapterhub.cli.options import AsJson, bytes_shown, connect, examples
from adapterhub.cli.output import Waiting, show_json
from adapterhub.errors import AdapterHubError

if TYPE_CHECKING:
    from adapterhub.cli.client import Client
    from adapterhub.cli.intake import Outcome
    from adapterhub.cli.source import Item, Skipped, Source

HUGGING_FACE = "https://huggingface.co"


def join(app: typer.Typer) -> None:
    app.command(
        "import",
        epilog=examples(
            "import hf:my-org --to team",
            "import hf:my-org/my-lora --upstream https://old-hub.example --dry-run",
            "import folder ./loras --to team --name-from card",
            "import s3://bucket/loras --to team --private",
            "import mlflow:http://127.0.0.1:5000 --to team",
        ),
    )(import_)


def import_(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="hf:ORG, hf:ORG/NAME, folder, s3://BUCKET/PREFIX or mlflow:URL.")],
    path: Annotated[str | None, typer.Argument(help="With folder: which one.", show_default=False)] = None,
    to: Annotated[
        str | None, typer.Option(help="Namespace that takes them; default: the source's where it is yours, else yours.")
    ] = None,
    upstream: Annotated[str, typer.Option(help="With hf: URL of the hub to import from.")] = HUGGING_FACE,
    upstream_token: Annotated[
        str | None,
        typer.Option(
            envvar="ADAPTERHUB_UPSTREAM_TOKEN",
            show_envvar=False,
            help="With hf: token for that hub alone; else ADAPTERHUB_UPSTREAM_TOKEN, else none.",
        ),
    ] = None,
    name_from: Annotated[
        str, typer.Option(help="With folder and s3: name by path, or by the name in the card.")
    ] = "path",
    follow_uris: Annotated[
        bool,
        typer.Option(
            "--follow-uris", help="With mlflow: read s3: and file: addresses that it names, with your rights."
        ),
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Hide what is made, also what its source shows.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import repositories with their revisions; run it again to go on, or for what came since."""
    from adapterhub.cli.source import Wishes
    from adapterhub.cli.sources import open_source

    client = connect(ctx)
    opened = open_source(_place(source, path), Wishes(upstream, upstream_token, name_from, follow_uris))
    namespace = _namespace(client, to)
    states = []
    taken: set[str] = set()
    with closing(opened):
        for found in opened.items():
            outcome = _outcome(found, namespace)
            if outcome.state == "planned":
                _import_one(client, opened, found, outcome, taken, is_private=private, is_dry=dry_run)
            states.append(outcome.state)
            if as_json:
                show_json(asdict(outcome))
            else:
                views.show_import(asdict(outcome))
    if not set(states) - {"skipped"}:
        raise Missing(f"{_place(source, path)}: holds no patch or model of a known kind")
    if "failed" in states:
        raise typer.Exit(REFUSED)


def _place(source: str, path: str | None) -> str:
    if source == "folder":
        if path is None:
            raise Misused("import folder: say which one: adapterhub import folder PATH")
        return f"folder:{path}"
    if path is not None:
        raise Misused(f"import {source}: only `import folder` takes a second word, found {path!r}")
    return source


def _namespace(client: Client, to: str | None) -> Callable[[Item], str]:
    """Which namespace takes an item: the one asked for, its source's where the caller belongs there, the caller's."""
    if to is not None:
        return lambda item: to
    me = client.get("/api/whoami-v2")
    mine = {me["name"], *(one["name"] for one in me["orgs"])}
    return lambda item: item.namespace if item.namespace and item.namespace in mine else str(me["name"])


def _outcome(found: Item | Skipped, namespace: Callable[[Item], str]) -> Outcome:
    from adapterhub.cli.intake import Outcome
    from adapterhub.cli.source import Skipped

    if isinstance(found, Skipped):
        return Outcome(found.what, state="failed" if found.is_fault else "skipped", problems=[found.reason])
    return Outcome(found.origin, f"{namespace(found)}/{found.name}", skipped=list(found.skipped))


def _import_one(
    client: Client,
    source: Source,
    found: Item | Skipped,
    outcome: Outcome,
    taken: set[str],
    *,
    is_private: bool,
    is_dry: bool,
) -> None:
    """Bring one item in, or plan it; what goes wrong with it is its own problem and stops no other."""
    from adapterhub.cli import intake
    from adapterhub.cli.source import Item

    assert isinstance(found, Item)
    item = replace(found, is_private=found.is_private or is_private)
    try:
        if outcome.repo.casefold() in taken:
            raise Misused(f"{outcome.repo}: an earlier item of this import has that name")
        taken.add(outcome.repo.casefold())
        if is_dry:
            intake.plan(source, item, outcome)
            return
        with Waiting(f"import {item.origin}") as waiting:
            intake.bring(client, source, item, outcome, bytes_shown(waiting))
    except (AdapterHubError, OSError) as error:
        outcome.state = "failed"
        outcome.problems.append(str(error))
