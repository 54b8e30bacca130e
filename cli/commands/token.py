"""`adapterhub token`: one's own tokens."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from adapterhub.cli.errors import Misused
from adapterhub.cli.options import AsJson, connect, examples, group
from adapterhub.cli.output import say, show_json, show_json_lines, show_table
from adapterhub.hub.web.wording import ago

token = group("token", "Make, list and end your tokens.")


def join(app: typer.Typer) -> None:
    app.add_typer(token)


@token.command(
    epilog=examples(
        "token create laptop --role write",
        "token create ci --role fine-grained --scope team/model=repo.write --scope team=repo.content.read --days 90",
    )
)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What you will know the token by.")],
    role: Annotated[str, typer.Option(help="read, write, fine-grained; admin for administrators.")] = "read",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a fine-grained token: THING=PERMISSION,...; a thing is ns/name, or ns for all of an account, or "
            "global for all that is public. May be repeated.",
            show_default=False,
        ),
    ] = None,
    reads_gated: Annotated[
        bool,
        typer.Option("--reads-gated", help="Let a fine-grained token open the gated repositories that you may open."),
    ] = False,
    days: Annotated[int | None, typer.Option(help="Days until it ends; default: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once."""
    new: dict[str, Any] = {"name": name, "role": role, "days": days, "reads_gated": reads_gated}
    made = connect(ctx).post("/api/tokens", new | _reach(scope or []))
    if as_json:
        show_json(made)
        return
    say(f"made the token {made['name']} ({made['role']}); it is shown this once:")
    say(made["token"], to_stdout=True)


@token.command("list", epilog=examples("token list", "token list --json"))
def list_tokens(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List your tokens that have not ended."""
    found = connect(ctx).get("/api/tokens")["items"]
    if as_json:
        show_json_lines(found)
        return
    rows = (
        (t["name"], t["role"], _told(t), ago(t["created_at"]), (t["expires_at"] or "never")[:10], t["id"])
        for t in found
    )
    show_table(("name", "role", "reaches", "made", "ends", "id"), rows)


@token.command(epilog=examples("token revoke laptop --yes"))
def revoke(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name or id of the token.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """End a token at once."""
    if not yes:
        raise Misused(f"this ends the token {name} for good; say --yes to do it")
    connect(ctx).delete(f"/api/tokens/{quote(name, safe='')}")
    say(f"ended the token {name}")


def _reach(scopes: list[str]) -> dict[str, Any]:
    """The fields of a request that say what a fine-grained token reaches. Raises Misused."""
    scoped, everywhere = [], []
    for written in scopes:
        name, is_said, permissions = written.partition("=")
        named = [one for one in permissions.split(",") if one]
        if not is_said or not name or not named:
            raise Misused(f"scope {written!r}: write THING=PERMISSION, such as team/model=repo.write")
        if name == "global":
            everywhere += named
        else:
            scoped.append({"name": name, "permissions": named})
    return {"scoped": scoped, "everywhere": everywhere}


def _told(one: dict[str, Any]) -> str:
    parts = [f"{scope['name']}: {', '.join(scope['permissions'])}" for scope in one["scoped"]]
    parts += [f"all public: {', '.join(one['everywhere'])}"] if one["everywhere"] else []
    parts += ["gated repositories"] if one["reads_gated"] else []
    return "; ".join(parts)
