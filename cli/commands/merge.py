"""`adapterhub merge`: models made from a base and patches, by the server or by this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli import views
from adapterhub.cli.errors import Misused
from adapterhub.cli.options import MEMORY, AsJson, Config, bytes_of, connect, examples, finish, group
from adapterhub.cli.output import Waiting, progress_shown, show_json
from adapterhub.cli.variants import show_variants

if TYPE_CHECKING:
    from adapterhub.merging.recipes.nodes import Recipe

merge = group("merge", "Merge a base and patches into a model, or patches into one patch.")


def join(app: typer.Typer) -> None:
    app.add_typer(merge)


@merge.command(
    epilog=examples(
        'merge run "demo/base + 0.7*demo/code + 0.5*demo/licences" --push demo/both',
        'merge run "ties(demo/base; demo/code, demo/licences, density=0.2)" --push demo/ties',
        'merge run "demo/base + 0.7*demo/code + 0.5*demo/licences" --as lora --push demo/both-lora',
        'merge run "base + 0.5*code" --input base=./base --input code=./code --out ./merged --memory 1GiB',
        "merge run --config ties.yml --push demo/ties",
        "merge run --config ties.yml --out ./merged",
    )
)
def run(
    ctx: typer.Context,
    expression: Annotated[
        str | None, typer.Argument(help="The recipe; a name is namespace/name or namespace/name@revision.")
    ] = None,
    config: Config = None,
    push: Annotated[str | None, typer.Option(help="Repository that takes the result; default: YOU/merge-...")] = None,
    as_kind: Annotated[
        str | None, typer.Option("--as", help="Form of the result, such as lora or lora:r=16; default: a full model.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="dtype of the result, such as BF16; default: the base's.")] = None,
    heads: Annotated[
        str | None,
        typer.Option(help="Where inputs have heads of their own: keep:NAME, multi or drop."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Hide a repository that is made for the result.")] = False,
    message: Annotated[str | None, typer.Option(help="Summary of the commit.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and end.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Merge local folders on this machine into that folder, without a server.")
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="With --out: NAME=FOLDER for each name; may be repeated.")
    ] = None,
    memory: Annotated[str, typer.Option(help="With --out: memory the merge may use, such as 512MiB or 8GB.")] = MEMORY,
    as_json: AsJson = False,
) -> None:
    """Merge by an expression or a recipe file, and commit the result with its recipe."""
    from adapterhub.cli import local

    written = local.written(expression, config)
    if out is not None:
        if push or private or message or no_wait:
            raise Misused("--out merges on this machine; --push, --private, --message and --no-wait need a server")
        result = _merge_here(local.parsed(written), inputs or [], out, as_kind, dtype, heads, bytes_of(memory))
        if as_json:
            show_json(result)
        else:
            views.show_merge(result)
        return
    if inputs:
        raise Misused("--input names local folders and goes together with --out FOLDER")
    client = connect(ctx)
    asked = {**written, "push": push, "as": as_kind, "dtype": dtype, "private": private, "heads": heads}
    job = client.post("/api/merges", asked | {"message": message})
    finish(client, job, "merge", views.show_merge, no_wait=no_wait, as_json=as_json)


@merge.command(epilog=examples("merge methods", "merge methods --json"))
def methods(as_json: AsJson = False) -> None:
    """List the merge methods and their parameters."""
    from adapterhub.merging.methods import methods as known

    show_variants("method", known().values(), "is_experimental", as_json=as_json)


def _merge_here(
    recipe: Recipe,
    inputs: list[str],
    out: Path,
    as_kind: str | None,
    dtype: str | None,
    heads: str | None,
    memory_bytes: int,
) -> dict[str, Any]:
    from adapterhub.cli import local

    folders = local.named_folders(inputs)
    with Waiting("merge", in_bytes=True) as waiting:
        done = local.merge(
            recipe,
            folders,
            out,
            as_kind=as_kind,
            dtype=dtype,
            heads=heads,
            memory_bytes=memory_bytes,
            progress=progress_shown(waiting),
        )
    files = [{"path": name, "size": size, "digest": digest} for name, size, digest in done.files]
    digest = next(file["digest"] for file in files if file["path"] == "recipe.json")
    return {"folder": str(out), "recipe_digest": digest, "files": files, "report": dict(done.report)}
