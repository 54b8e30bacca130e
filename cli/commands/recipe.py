"""`adapterhub recipe`: what an expression means, before any work and after it; recipes under names of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from adapterhub.cli import views
from adapterhub.cli.client import repo_path, split_revision
from adapterhub.cli.errors import Declined, Misused
from adapterhub.cli.options import MEMORY, AsJson, Config, bytes_of, connect, examples, finish, group, wait
from adapterhub.cli.output import Waiting, progress_shown, say, show_fields, show_json, show_json_lines, show_table
from adapterhub.cli.variants import show_variants

if TYPE_CHECKING:
    from adapterhub.cli.client import Client

recipe = group("recipe", "Parse, explain, save, compare and re-run recipes.")

Name = Annotated[str, typer.Argument(help="The saved recipe: namespace/name, where it matters with @version.")]
Limit = Annotated[int, typer.Option(min=1, help="Most lines.")]
Expression = Annotated[str | None, typer.Argument(help="The expression.")]
AsKind = Annotated[str | None, typer.Option("--as", help="Form of the result, such as lora; default: a full model.")]
Inputs = Annotated[
    list[str] | None, typer.Option("--input", help="NAME=FOLDER for each name, without a server; may be repeated.")
]
Memory = Annotated[str, typer.Option(help="With --input: memory it may use, such as 512MiB or 8GB.")]
Dtype = Annotated[str | None, typer.Option(help="dtype of the result, such as BF16; default: the base's.")]


def join(app: typer.Typer) -> None:
    app.add_typer(recipe)


@recipe.command(epilog=examples('recipe parse "demo/base + .5 * demo/code"', "recipe parse --config ties.yml"))
def parse(expression: Expression = None, config: Config = None, as_json: AsJson = False) -> None:
    """Check an expression or a recipe file, without a server, and print it as an expression in its one normal way."""
    from adapterhub.cli import local

    found = local.parsed(local.written(expression, config))
    if as_json:
        show_json({"text": str(found), "references": [ref.address for ref in found.references()]})
        return
    say(str(found), to_stdout=True)
    for note in found.notes:
        say(note)


@recipe.command(epilog=examples("recipe operators", "recipe operators --json"))
def operators(as_json: AsJson = False) -> None:
    """List what composes models while they decode, and the parameters of each."""
    from adapterhub.merging.decoding import operators as known

    show_variants("operator", known().values(), "usage", as_json=as_json)


@recipe.command(
    epilog=examples(
        'recipe explain "demo/base + 0.5*demo/code"',
        'recipe explain "ties(demo/base; demo/code, demo/licences)" --tensors',
        'recipe explain "base + 0.5*code" --input base=./base --input code=./code',
        "recipe explain --config ties.yml",
    )
)
def explain(
    ctx: typer.Context,
    expression: Expression = None,
    config: Config = None,
    as_kind: AsKind = None,
    dtype: Dtype = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the method of every tensor.")] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME=FOLDER for each name, without a server; may be repeated."),
    ] = None,
    memory: Memory = MEMORY,
    as_json: AsJson = False,
) -> None:
    """Show what a merge would do: inputs, methods, size, memory, time, what is approximated, the licence."""
    from adapterhub.cli import local

    written = local.written(expression, config)
    if inputs:
        recipe, folders = local.parsed(written), local.named_folders(inputs)
        plan = local.explain(recipe, folders, as_kind=as_kind, dtype=dtype, memory_bytes=bytes_of(memory))
    else:
        asked = {**written, "as": as_kind, "dtype": dtype}
        plan = connect(ctx).post("/api/recipes/explain", asked)
    if as_json:
        show_json(plan)
    else:
        views.show_plan(plan, tensors=tensors)


@recipe.command(
    epilog=examples(
        'recipe save team/support "demo/base + 0.5*demo/code" --message "half of it"',
        'recipe save team/support "recipe/team/support@1 + 0.3*demo/licences"',
    )
)
def save(
    ctx: typer.Context,
    name: Name,
    expression: Expression = None,
    config: Config = None,
    message: Annotated[str, typer.Option(help="Why this version is made.")] = "",
    as_kind: AsKind = None,
    dtype: Dtype = None,
    private: Annotated[bool, typer.Option("--private", help="Hide a recipe that is made.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save a recipe under a name: its next version, with its inputs pinned to their present commits."""
    from adapterhub.cli import local

    asked = {"name": name, **local.written(expression, config), "message": message, "private": private}
    saved = connect(ctx).post("/api/recipes", asked | {"as": as_kind, "dtype": dtype})
    if as_json:
        show_json(saved)
    else:
        views.show_saved_recipe(saved)


@recipe.command("list", epilog=examples("recipe list", "recipe list support --author team --json"))
def list_(
    ctx: typer.Context,
    search: Annotated[str, typer.Argument(help="A part of the name.")] = "",
    author: Annotated[str, typer.Option(help="Account that owns them.")] = "",
    limit: Limit = 30,
    as_json: AsJson = False,
) -> None:
    """List saved recipes."""
    found = connect(ctx).items("/api/recipes", limit, search=search, author=author)
    if as_json:
        show_json_lines(found)
    else:
        show_table(views.RECIPE_COLUMNS, map(views.recipe_row, found))


@recipe.command(epilog=examples("recipe show team/support", "recipe show team/support@2", "recipe show sha256:5b0f..."))
def show(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="A saved recipe, with @version for another than the latest; or a digest, sha256:...")
    ],
    as_json: AsJson = False,
) -> None:
    """Show a saved recipe, or one that something was merged by."""
    client = connect(ctx)
    is_kept = name.startswith("sha256:")
    found = client.get("/api/recipes/" + quote(name, safe=":")) if is_kept else _saved(client, name)
    if as_json:
        show_json(found)
    elif is_kept:
        show_fields([("recipe", found["text"]), ("digest", found["digest"]), ("as", found["canonical"]["as"])])
        views.show_recipe_inputs(found["canonical"])
    else:
        views.show_saved_recipe(found)


@recipe.command(epilog=examples("recipe versions team/support"))
def versions(ctx: typer.Context, name: Name, limit: Limit = 30, as_json: AsJson = False) -> None:
    """List the versions of a saved recipe, the latest first."""
    path, _ = recipe_path(name)
    found = connect(ctx).items(f"{path}/versions", limit)
    if as_json:
        show_json_lines(found)
    else:
        show_table(views.VERSION_COLUMNS, map(views.version_row, found))


@recipe.command(
    epilog=examples(
        "recipe diff team/support@1 team/support",
        'recipe diff team/support "demo/base + 0.7*demo/code"',
    )
)
def diff(
    ctx: typer.Context,
    before: Annotated[str, typer.Argument(help="A saved recipe, a digest, or an expression.")],
    after: Annotated[str, typer.Argument(help="What to compare it with.")],
    as_json: AsJson = False,
) -> None:
    """Tell what two recipes differ in: inputs, their commits, weights, methods, parameters."""
    found = connect(ctx).post("/api/recipes/diff", {"before": before, "after": after})
    if as_json:
        show_json(found)
        return
    for change in found["changes"]:
        say(change["text"], to_stdout=True)
    if found["is_same"]:
        say("no difference")


@recipe.command(
    epilog=examples("recipe run team/support --push team/support-model", "recipe run team/support@2 --latest")
)
def run(
    ctx: typer.Context,
    name: Name,
    push: Annotated[str | None, typer.Option(help="Repository that takes the result; default: YOU/merge-...")] = None,
    latest: Annotated[
        bool, typer.Option("--latest", help="Take what the names mean now, not the commits of the day it was saved.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Hide a repository that is made for the result.")] = False,
    message: Annotated[str | None, typer.Option(help="Summary of the commit.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge by a saved recipe, at the commits that it was saved with."""
    path, version = recipe_path(name)
    client = connect(ctx)
    asked = {"version": version, "latest": latest, "push": push, "private": private, "message": message}
    job = client.post(f"{path}/runs", asked)
    finish(client, job, "merge", views.show_merge, no_wait=no_wait, as_json=as_json)


@recipe.command(
    epilog=examples(
        "recipe reproduce demo/both",
        "recipe reproduce ./merged --input demo/base=./base --input demo/code=./code",
    )
)
def reproduce(
    ctx: typer.Context,
    result: Annotated[str, typer.Argument(help="namespace/name[@revision] at the server; with --input a folder.")],
    inputs: Inputs = None,
    memory: Memory = MEMORY,
    as_json: AsJson = False,
) -> None:
    """Make a merge's result again by its recipe.json and compare; exits with 4 where it is not the same."""
    if inputs:
        from adapterhub.cli import local

        with Waiting("reproduce") as waiting:
            shown = progress_shown(waiting)
            found = local.reproduce(
                Path(result), local.named_folders(inputs), memory_bytes=bytes_of(memory), progress=shown
            )
    else:
        repo_id, revision = split_revision(result)
        repo_path(repo_id)
        client = connect(ctx)
        job = client.post("/api/recipes/reproduce", {"repo": repo_id, "revision": revision})
        found = wait(client, job, "reproduce")
    if as_json:
        show_json(found)
    else:
        views.show_reproduction(found)
    if not found["is_same"]:
        raise Declined(found["sentence"])


@recipe.command("set", epilog=examples("recipe set team/support --name team/help", "recipe set team/support --public"))
def set_recipe(
    ctx: typer.Context,
    name: Name,
    new_name: Annotated[str | None, typer.Option("--name", help="Another name; the old one is free again.")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", show_default=False, help="Who may see it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rename a saved recipe, or hide or show it."""
    path, _ = recipe_path(name)
    changed = connect(ctx).patch(path, {"name": new_name, "private": private})
    if as_json:
        show_json(changed)
    else:
        views.show_saved_recipe(changed)


@recipe.command(epilog=examples("recipe delete team/support --yes"))
def delete(
    ctx: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """Delete a saved recipe with all its versions; what was merged by it stays."""
    path, version = recipe_path(name)
    if version is not None:
        raise Misused(f"{name}: versions are kept for good; name the recipe without @{version}")
    if not yes:
        raise Misused(f"this deletes {name} with all its versions; say --yes to do it")
    connect(ctx).delete(path)
    say(f"deleted {name}")


def recipe_path(name: str) -> tuple[str, int | None]:
    """Path and version of "ns/name", "recipe/ns/name", or either with "@version". Raises Misused."""
    repo_id, revision = split_revision(name.removeprefix("recipe/"))
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise Misused(f"{name!r}: write a saved recipe as namespace/name or namespace/name@version")
    if revision is not None and not revision.isdecimal():
        raise Misused(f"{name!r}: the version of a saved recipe is a number, as `recipe versions {repo_id}` lists them")
    return "/api/recipes/" + quote(repo_id), int(revision) if revision else None


def _saved(client: Client, name: str) -> dict[str, Any]:
    path, version = recipe_path(name)
    found: dict[str, Any] = client.get(path, version=version)
    return found
