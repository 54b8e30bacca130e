"""`adapterhub admin`: accounts and closed repositories, for administrators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from adapterhub.cli.client import repo_path
from adapterhub.cli.errors import Missing, Misused
from adapterhub.cli.options import AsJson, connect, examples, group, read_secret, settings
from adapterhub.cli.output import say, show_json, show_json_lines, show_table
from adapterhub.hub.web.wording import ago, bytes_short

if TYPE_CHECKING:
    from sqlmodel import Session

admin = group("admin", "Manage accounts and close repositories.")
user = group("user", "Add and list users.")
repo = group("repo", "Close repositories, and open them again.")
mirror = group("mirror", "Look after repositories that were brought from another hub.")
admin.add_typer(user)
admin.add_typer(repo)
admin.add_typer(mirror)


def join(app: typer.Typer) -> None:
    app.add_typer(admin)


@user.command(epilog=examples("admin user add maria", "admin user add maria --data /srv/adapterhub"))
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the account.")],
    fullname: Annotated[str, typer.Option(help="Full name.", show_default=False)] = "",
    email: Annotated[str, typer.Option(help="Address.", show_default=False)] = "",
    is_admin: Annotated[bool, typer.Option("--admin", help="Make an administrator.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="The server's data folder, on its own machine: no token is needed.", exists=True),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a user and print the first token, which is shown this once."""
    new = {"name": name, "fullname": fullname, "email": email, "is_admin": is_admin}
    made = _add_here(data, new) if data else connect(ctx).post("/api/admin/users", new)
    if as_json:
        show_json(made)
        return
    say(f"added {made['name']}; the token is shown this once:")
    say(made["token"], to_stdout=True)


@user.command("list", epilog=examples("admin user list"))
def list_users(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List every user."""
    found = connect(ctx).get("/api/admin/users")["items"]
    if as_json:
        show_json_lines(found)
        return
    rows = ((u["name"], u["fullname"], "yes" if u["is_admin"] else "", ago(u["created_at"])) for u in found)
    show_table(("user", "full name", "administrator", "since"), rows)


@repo.command(epilog=examples('admin repo disable ns/name --reason "stolen weights" --yes'))
def disable(
    ctx: typer.Context,
    repo_id: Annotated[str, typer.Argument(help="The repository, ns/name.")],
    reason: Annotated[str, typer.Option(help="Why; its visitors are told.", show_default=False)] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """Close a repository to everybody but administrators, its owner too."""
    if not yes:
        raise Misused(f"this closes {repo_id} to everybody but administrators; say --yes to do it")
    connect(ctx).put(_path(repo_id), {"disabled": True, "reason": reason})
    say(f"{repo_id} is disabled; `adapterhub admin repo enable {repo_id}` opens it again")


@repo.command(epilog=examples("admin repo enable ns/name"))
def enable(ctx: typer.Context, repo_id: Annotated[str, typer.Argument(help="The repository, ns/name.")]) -> None:
    """Open a disabled repository again."""
    connect(ctx).put(_path(repo_id), {"disabled": False})
    say(f"{repo_id} is open again")


@mirror.command("list", epilog=examples("admin mirror list"))
def list_mirrors(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List repositories that were brought from another hub."""
    found = connect(ctx).get("/api/admin/mirrors")["items"]
    if as_json:
        show_json_lines(found)
        return
    rows = (
        (
            m["name"],
            m["source"],
            bytes_short(m["size_bytes"]),
            "yes" if m["is_pinned"] else "",
            "all" if m["organisations"] is None else ", ".join(m["organisations"]) or "nobody",
            m["problem"],
        )
        for m in found
    )
    show_table(("repository", "from", "here", "pinned", "shown to", "problem"), rows)


@mirror.command(epilog=examples("admin mirror pin ns/name"))
def pin(ctx: typer.Context, repo_id: Annotated[str, typer.Argument(help="The repository, ns/name.")]) -> None:
    """Keep a mirror's files whatever the quota."""
    connect(ctx).put(_mirror_path(repo_id), {"pinned": True})
    say(f"{repo_id} is pinned")


@mirror.command(epilog=examples("admin mirror unpin ns/name"))
def unpin(ctx: typer.Context, repo_id: Annotated[str, typer.Argument(help="The repository, ns/name.")]) -> None:
    """Let a mirror's files go by the quota again."""
    connect(ctx).put(_mirror_path(repo_id), {"pinned": False})
    say(f"{repo_id} is not pinned")


@mirror.command(epilog=examples("admin mirror evict ns/name --yes"))
def evict(
    ctx: typer.Context,
    repo_id: Annotated[str, typer.Argument(help="The repository, ns/name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """Let go of a mirror's large files; they come again when asked for."""
    if not yes:
        raise Misused(f"this lets go of the large files of {repo_id}; say --yes to do it")
    gone = connect(ctx).post(_mirror_path(repo_id) + "/evict")["files"]
    say(f"{repo_id}: {gone} files let go of")


@mirror.command(epilog=examples("admin mirror refresh ns/name"))
def refresh(ctx: typer.Context, repo_id: Annotated[str, typer.Argument(help="The repository, ns/name.")]) -> None:
    """Have a mirror's branches and tags looked up, or a name asked for again, at its next read."""
    connect(ctx).post(_mirror_path(repo_id) + "/refresh")
    say(f"{repo_id} is looked up again at its next read")


@mirror.command(
    epilog=examples(
        "admin mirror token team", "admin mirror token team < token.txt", "admin mirror token team --remove --yes"
    )
)
def token(
    ctx: typer.Context,
    organisation: Annotated[str, typer.Argument(help="The organisation.")],
    remove: Annotated[bool, typer.Option("--remove", help="Forget its token, and what that opened.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """Set an organisation's token for the mirrored hub, read from the terminal or standard input."""
    path = f"/api/organisations/{quote(organisation, safe='')}/mirror-token"
    if not remove:
        connect(ctx).put(path, {"token": read_secret("Token of the mirrored hub")})
        say(f"{organisation} has a token; its members read there what that token may read")
        return
    if not yes:
        raise Misused(f"this closes to {organisation} what its token opened; say --yes to do it")
    connect(ctx).delete(path)
    say(f"{organisation} has no token for the mirrored hub any more")


@mirror.command(epilog=examples("admin mirror tokens"))
def tokens(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List organisations that have a token for the mirrored hub."""
    found = connect(ctx).get("/api/mirror-tokens")["items"]
    if as_json:
        show_json_lines(found)
        return
    rows = ((one["organisation"], one["source"], ago(one["created_at"])) for one in found)
    show_table(("organisation", "for", "since"), rows)


def _mirror_path(repo_id: str) -> str:
    return repo_path(repo_id).replace("/api/patches/", "/api/admin/mirrors/", 1)


def _path(repo_id: str) -> str:
    return repo_path(repo_id).replace("/api/patches/", "/api/admin/repos/", 1)


def _add_here(data: Path, new: dict[str, Any]) -> dict[str, str]:
    """A user, added in the name of the first administrator: whoever may write the data folder may do that."""
    from sqlmodel import select

    from adapterhub.hub.db.tables import Account
    from adapterhub.hub.services import accounts
    from adapterhub.hub.services.access import Caller
    from adapterhub.hub.services.wiring import open_hub

    def work(session: Session) -> dict[str, str]:
        admin = session.exec(select(Account).where(Account.is_admin, Account.disabled_at == None)).first()  # noqa: E711
        if admin is None:
            raise Missing(f"{data}: no administrator yet; `adapterhub serve` makes one at its first start")
        caller = Caller(admin.id, admin.name, is_admin=True, token_role="admin")  # noqa: S106  a role, no secret
        account = accounts.create_user(session, caller, **new)
        role = "admin" if account.is_admin else "write"
        return {"name": account.name, "token": accounts.issue_token(session, caller, account, "first", role)[1]}

    return open_hub(settings({"data": data})).db.transact(work)
