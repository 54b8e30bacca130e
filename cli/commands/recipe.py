"""`adapterhub recipe`: what an expression means, before any work and after it."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from adapterhub.cli import views
from adapterhub.cli.options import MEMORY_BYTES, AsJson, connect, examples, group
from adapterhub.cli.output import say, show_fields, show_heading, show_json, show_table

recipe = group("recipe", "Parse, explain and show recipes.")

Expression = Annotated[str, typer.Argument(help="The expression.")]
AsKind = Annotated[str | None, typer.Option("--as", help="Form of the result, such as lora; default: a full model.")]
Dtype = Annotated[str | None, typer.Option(help="dtype of the result, such as BF16; default: the base's.")]


def join(app: typer.Typer) -> None:
    app.add_typer(recipe)


@recipe.command(epilog=examples('recipe parse "demo/base + .5 * demo/code"'))
def parse(expression: Expression, as_json: AsJson = False) -> None:
    """Check an expression, without a server, and print it in its one normal way."""
    from adapterhub.merging.recipes.expression import parse as parse_expression

    found = parse_expression(expression)
    if as_json:
        show_json({"text": str(found), "references": [ref.address for ref in found.references()]})
    else:
        say(str(found), to_stdout=True)


@recipe.command(
    epilog=examples(
        'recipe explain "demo/base + 0.5*demo/code"',
        'recipe explain "ties(demo/base; demo/code, demo/licences)" --tensors',
        'recipe explain "base + 0.5*code" --input base=./base --input code=./code',
    )
)
def explain(
    ctx: typer.Context,
    expression: Expression,
    as_kind: AsKind = None,
    dtype: Dtype = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the method of every tensor.")] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME=FOLDER for each name, without a server; may be repeated."),
    ] = None,
    memory_bytes: Annotated[
        int, typer.Option(min=1 << 20, help="With --input: bytes one step may use.")
    ] = MEMORY_BYTES,
    as_json: AsJson = False,
) -> None:
    """Show what a merge would do: inputs, methods, size, memory, time, what is approximated, the licence."""
    if inputs:
        from adapterhub.cli import local

        folders = local.named_folders(inputs)
        plan = local.explain(expression, folders, as_kind=as_kind, dtype=dtype, memory_bytes=memory_bytes)
    else:
        asked = {"expression": expression, "as": as_kind, "dtype": dtype}
        plan = connect(ctx).post("/api/recipes/explain", asked)
    if as_json:
        show_json(plan)
    else:
        views.show_plan(plan, tensors=tensors)


@recipe.command(epilog=examples("recipe show sha256:5b0f..."))
def show(
    ctx: typer.Context,
    digest: Annotated[str, typer.Argument(help="sha256:... as `patch show` and `merge run` print it.")],
    as_json: AsJson = False,
) -> None:
    """Show a recipe that something was merged by."""
    found = connect(ctx).get("/api/recipes/" + quote(digest, safe=":"))
    if as_json:
        show_json(found)
        return
    canonical = found["canonical"]
    show_fields([("recipe", found["text"]), ("digest", found["digest"]), ("as", canonical["as"])])
    show_heading("inputs")
    show_table(("name", "kind", "digest"), ((i["name"], i["kind"], i["digest"][:19]) for i in canonical["inputs"]))
