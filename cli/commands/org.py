"""`adapterhub org`: organisations and their members."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from adapterhub.cli.errors import Misused
from adapterhub.cli.options import AsJson, connect, examples, group
from adapterhub.cli.output import say, show_json, show_json_lines, show_table

org = group("org", "Make organisations and choose their members.")
member = group("member", "List, set and remove members.")
org.add_typer(member)

Organisation = Annotated[str, typer.Argument(help="Name of the organisation.")]
User = Annotated[str, typer.Argument(help="Name of the user.")]


def join(app: typer.Typer) -> None:
    app.add_typer(org)


@org.command(epilog=examples('org create team --fullname "The team"'))
def create(
    ctx: typer.Context,
    name: Organisation,
    fullname: Annotated[str, typer.Option(help="Full name.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Make an organisation; you become its administrator."""
    made = connect(ctx).post("/api/organisations", {"name": name, "fullname": fullname})
    if as_json:
        show_json(made)
        return
    say(f"made {made['name']}; add members with `adapterhub org member set {made['name']} USER ROLE`")


@org.command("list", epilog=examples("org list"))
def list_organisations(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List your organisations."""
    found = connect(ctx).get("/api/organisations")["items"]
    if as_json:
        show_json_lines(found)
        return
    show_table(("organisation", "full name", "your role"), ((o["name"], o["fullname"], o["role"]) for o in found))


@member.command("list", epilog=examples("org member list team"))
def list_members(ctx: typer.Context, organisation: Organisation, as_json: AsJson = False) -> None:
    """List the members of an organisation of yours."""
    found = connect(ctx).get(f"/api/organisations/{quote(organisation, safe='')}/members")["items"]
    if as_json:
        show_json_lines(found)
        return
    show_table(("user", "full name", "role"), ((m["name"], m["fullname"], m["role"]) for m in found))


@member.command("set", epilog=examples("org member set team maria write"))
def set_member(
    ctx: typer.Context,
    organisation: Organisation,
    user: User,
    role: Annotated[str, typer.Argument(help="admin, write, contributor (writes to what they made) or read.")],
) -> None:
    """Give a user a role in an organisation."""
    connect(ctx).put(_path(organisation, user), {"role": role})
    say(f"{user} has the role {role} in {organisation}")


@member.command(epilog=examples("org member remove team maria --yes"))
def remove(
    ctx: typer.Context,
    organisation: Organisation,
    user: User,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """Take a user out of an organisation; their repositories there stay."""
    if not yes:
        raise Misused(f"this takes {user} out of {organisation}; say --yes to do it")
    connect(ctx).put(_path(organisation, user), {"role": None})
    say(f"{user} is no longer in {organisation}")


def _path(organisation: str, user: str) -> str:
    return f"/api/organisations/{quote(organisation, safe='')}/members/{quote(user, safe='')}"
