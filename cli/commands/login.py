"""`adapterhub login` and `whoami`: the token, checked by the server and kept as `hf auth login` keeps it."""

from __future__ import annotations

from typing import Annotated

import typer

from adapterhub.cli.client import Client
from adapterhub.cli.options import AsJson, connect, examples, read_secret
from adapterhub.cli.output import say, show_fields, show_json


def join(app: typer.Typer) -> None:
    app.command(epilog=examples("login", "login < token.txt"))(login)
    app.command(epilog=examples("whoami", "whoami --json"))(whoami)


def login(
    ctx: typer.Context,
    token: Annotated[
        str | None, typer.Argument(help="The token; default: asked for, or read from standard input.")
    ] = None,
) -> None:
    """Check a token with the server and store it for this command, hf and Python."""
    token = token or ctx.obj.token or read_secret("Token")
    client = Client(ctx.obj.endpoint, token)
    say(f"logged in to {client.endpoint} as {client.log_in()}")


def whoami(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show whose token is used, its role, and your organisations."""
    client = connect(ctx)
    me = client.get("/api/whoami-v2")
    if as_json:
        show_json(me)
        return
    token = (me.get("auth") or {}).get("accessToken") or {}
    organisations = ", ".join(f"{one['name']} ({one['roleInOrg']})" for one in me["orgs"])
    show_fields(
        [
            ("user", me["name"]),
            ("full name", me["fullname"] if me["fullname"] != me["name"] else ""),
            ("organisations", organisations),
            ("token", f"{token.get('displayName')} ({token.get('role')})"),
            ("server", client.endpoint),
        ]
    )
