"""`adapterhub recipe`: what an expression means, before any work and after it."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from adapterhub.cli.options import AsJson, Config, connect, examples, group
from adapterhub.cli.output import say, show_fields, show_heading, show_json, show_table
from adapterhub.hub.web.wording import bytes_short, plain

recipe = group("recipe", "Parse, explain and show recipes.")

Expression = Annotated[str | None, typer.Argument(help="The expression.")]


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


@recipe.command(epilog=examples('recipe explain "demo/base + 0.5*demo/code"', "recipe explain --config ties.yml"))
def explain(ctx: typer.Context, expression: Expression = None, config: Config = None, as_json: AsJson = False) -> None:
    """Show what a merge would do: inputs by commit, tensors, bytes on disk, memory."""
    from adapterhub.cli import local

    plan = connect(ctx).post("/api/recipes/explain", local.written(expression, config))
    if as_json:
        show_json(plan)
        return
    show_fields(
        [
            ("recipe", plan["recipe"]),
            ("digest", plan["digest"]),
            ("makes", plan["as"]),
            ("base", plan["base"]),
            ("tensors", f"{plan['tensors_touched']} of {plan['tensors']} changed"),
            ("size", bytes_short(plan["size_bytes"])),
            ("memory", f"{bytes_short(plan['peak_bytes'])} at most for one step"),
            ("licences", plain(plan["licences"])),
            *(("note", note) for note in plan["notes"]),
        ]
    )
    show_heading("inputs")
    show_table(
        ("name", "kind", "commit"),
        ((one["ref"], one["kind"], one["name"].rpartition("@")[2][:12]) for one in plan["inputs"]),
    )


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
