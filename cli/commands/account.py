"""`adapterhub account`: what a user or organisation has chosen for its repositories."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from adapterhub.cli.options import AsJson, connect, examples, group
from adapterhub.cli.output import say, show_fields, show_json

account = group("account", "Show and change the settings of a user or organisation.")

Name = Annotated[str, typer.Argument(help="Name of the user or organisation.")]


def join(app: typer.Typer) -> None:
    app.add_typer(account)


@account.command(epilog=examples("account show team"))
def show(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show the settings of an account of yours."""
    found = connect(ctx).get(_path(name))
    if as_json:
        show_json(found)
        return
    show_fields([("account", found["account"]), ("unfit patches", _told(found))])


@account.command("set", epilog=examples("account set team --unfit-patches flag"))
def set_account(
    ctx: typer.Context,
    name: Name,
    unfit_patches: Annotated[
        str,
        typer.Option(
            help="What a push of a patch with NaN or infinity, or that does not fit its base, does: refuse, flag (keep "
            "it and show its problems), or default (as the server is set)."
        ),
    ],
) -> None:
    """Change the settings of an account that you administer."""
    wish = None if unfit_patches == "default" else unfit_patches
    found = connect(ctx).put(_path(name), {"unfit_patches": wish})
    say(f"{found['account']}: unfit patches: {_told(found)}")


def _told(found: dict[str, Any]) -> str:
    return str(found["unfit_patches"] or f"{found['effective']}, as the server is set")


def _path(name: str) -> str:
    return f"/api/accounts/{quote(name, safe='')}/settings"
