"""The web catalogue: each page is one service call and has a JSON twin in our own REST."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from starlette.staticfiles import StaticFiles

from adapterhub import __version__
from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import HubDep, PublicUrl
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import AccessRequest, Account
from adapterhub.hub.errors import InvalidToken, Refused
from adapterhub.hub.services import cards, collections, describe, gates, layers, patch_list, repos, search
from adapterhub.hub.services.access import Caller, authenticate
from adapterhub.hub.services.collections import Shown
from adapterhub.hub.web import sessions
from adapterhub.hub.web.pictures import Heatmap, heatmap, lineage
from adapterhub.hub.web.sessions import VisitorDep
from adapterhub.hub.web.snippets import snippets
from adapterhub.hub.web.wording import FILTERS

STATIC = Path(__file__).parent / "static"

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self'; script-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""What a page may load: this server's own files only, so that no card can reach out or run anything."""

SORTS = (
    ("updated", "last change"),
    ("downloads", "downloads"),
    ("likes", "likes"),
    ("name", "name"),
    ("size", "size"),
)

OWNED = 100
"""Repositories, and collections, that the page of an account lists."""

LISTED = 20
"""Patches that the page of a repository lists."""

FOLDERS = 100
"""Patches on each page of a repository's list of them."""

WAITING = 50
"""Requests for gated files that the page of a repository lists for its owner."""

FITS = {
    "exact": "the same base, tensor by tensor",
    "same_arch": "same shapes, other weights: port it first",
    "incompatible": "does not fit this base",
    "unknown": "base not on this hub, not checked",
}

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def static_files() -> StaticFiles:
    """The application that serves the stylesheet, the script and the icon, to be mounted at /static."""
    return StaticFiles(directory=STATIC)


def render(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page made from `template`, with the headers that every page carries."""
    html = _environment().get_template(template).render(version=__version__, asset=_asset, **values)
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
    }
    return HTMLResponse(html, status_code=status, headers=headers)


def error_page(status: int, title: str, detail: str) -> HTMLResponse:
    """The page of an error: what went wrong and the way back."""
    return render("error.html", status=status, title=title, detail=detail)


@router.get("/")
async def home(hub: HubDep, visitor: VisitorDep, endpoint: PublicUrl) -> HTMLResponse:
    """Where a visitor starts: what this is, and what changed lately."""
    page = await threads.run(_found, hub, visitor, {"sort": "updated", "limit": 10})
    return render(
        "home.html",
        visitor=visitor,
        items=page["items"],
        total=page["total"],
        endpoint=endpoint,
        json_twin="/api/patches",
    )


@router.get("/patches")
async def catalogue(
    request: Request,
    hub: HubDep,
    visitor: VisitorDep,
    search: Annotated[str, Query(max_length=200)] = "",
    kind: Annotated[str, Query(max_length=100)] = "",
    base: Annotated[str, Query(max_length=200)] = "",
    licence: Annotated[str, Query(max_length=100)] = "",
    author: Annotated[str, Query(max_length=100)] = "",
    sort: Annotated[str, Query(max_length=20)] = "updated",
    cursor: str | None = None,
) -> HTMLResponse:
    """Everything the caller may see, searched and filtered; the state is all in the URL."""
    filters = {"kind": kind, "base": base, "licence": licence, "author": author, "sort": sort}
    asked = {"query": search, "cursor": cursor, "limit": 30} | filters
    page = await threads.run(_found, hub, visitor, asked)
    following = request.url.include_query_params(cursor=page["cursor"]) if page["cursor"] else None
    return render(
        "catalogue.html",
        visitor=visitor,
        items=page["items"],
        kinds=page["kinds"],
        next=f"{following.path}?{following.query}" if following else None,
        query=search,
        filters=filters,
        filtered=bool(search or kind or base or licence or author),
        sorts=SORTS,
        json_twin=f"/api/patches?{request.url.query}",
    )


@router.get("/help")
async def help_page(visitor: VisitorDep, endpoint: PublicUrl) -> HTMLResponse:
    """How to use this hub, with its own address filled in."""
    return render("help.html", visitor=visitor, endpoint=endpoint)


@router.get("/login")
async def login_page(visitor: VisitorDep) -> HTMLResponse:
    """The form that takes a token."""
    return render("login.html", visitor=visitor)


@router.post("/login")
async def login(request: Request, hub: HubDep, token: Annotated[str, Form(max_length=200)]) -> Response:
    """Sign in with a token and go to the catalogue; the form again, saying why, when the token is not good."""
    sessions.require_same_origin(request)
    try:
        caller = await threads.run(_authenticated, hub, token.strip())
    except InvalidToken:
        return render("login.html", status=401, problem="This token is unknown here, expired or revoked.")
    response = RedirectResponse("/patches", status_code=303)
    sessions.begin(request, response, hub, caller)
    return response


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Sign out and go home."""
    sessions.require_same_origin(request)
    response = RedirectResponse("/", status_code=303)
    sessions.end(response)
    return response


@router.get("/collections/{owner}/{slug}")
async def collection_page(owner: str, slug: str, hub: HubDep, visitor: VisitorDep) -> Response:
    """A collection; under an old title it leads to the present one."""
    shown, items = await threads.run(_collection, hub, visitor, f"{owner}/{slug}")
    if shown.slug != f"{owner}/{slug}":
        return RedirectResponse(f"/collections/{shown.slug}")
    twin = f"/api/collections/{shown.slug}"
    return render("collection.html", visitor=visitor, collection=shown, items=items, json_twin=twin)


@router.get("/{owner}")
async def owner_page(owner: str, hub: HubDep, visitor: VisitorDep) -> HTMLResponse:
    """What one user or organisation has pushed and collected."""
    page = await threads.run(_owned, hub, visitor, owner)
    return render("owner.html", visitor=visitor, owner=owner, json_twin=f"/api/patches?author={owner}", **page)


@router.get("/{owner}/{name}")
async def repository_page(
    owner: str,
    name: str,
    hub: HubDep,
    visitor: VisitorDep,
    endpoint: PublicUrl,
    revision: str | None = None,
    path: Annotated[str | None, Query(max_length=1024)] = None,
) -> HTMLResponse:
    """Everything known of one repository at one revision, or of the one patch in the folder `path` of it."""
    page = await threads.run(_repository, hub, visitor, f"{owner}/{name}", revision, path)
    repo = page["repo"]
    asked = {"revision": repo["commit"] if revision else None, "path": path}
    return render(
        "repo.html",
        visitor=visitor,
        fits=FITS,
        snippets=snippets(repo, endpoint, path),
        at=query({"revision": revision}),
        path=path,
        listed=LISTED,
        json_twin=f"/api/patches/{repo['id']}" + query(asked),
        **page,
    )


@router.get("/{owner}/{name}/patches")
async def folders_page(
    owner: str,
    name: str,
    hub: HubDep,
    visitor: VisitorDep,
    revision: str | None = None,
    search: Annotated[str, Query(max_length=200)] = "",
    after: Annotated[str, Query(max_length=1024)] = "",
) -> HTMLResponse:
    """The patches in one repository, searched by their folders, a page at a time."""
    look = partial(patch_list.listing, query=search, limit=FOLDERS, after=after)
    page = await threads.run(look, hub, visitor, f"{owner}/{name}", revision)
    state = {"revision": revision, "search": search}
    return render(
        "folders.html",
        visitor=visitor,
        owner=owner,
        name=name,
        revision=revision,
        query_here=search,
        items=page["items"],
        total=page["total"],
        next=query(state | {"after": page["after"]}) if page["after"] else None,
        json_twin=f"/api/patches/{owner}/{name}/folders" + query(state | {"after": after}),
    )


@router.get("/{owner}/{name}/commit/{revision}")
@router.get("/{owner}/{name}/tree/{revision:path}")
async def revision_page(owner: str, name: str, revision: str) -> RedirectResponse:
    """The page at a revision, under the addresses that Hugging Face clients print and people share."""
    return RedirectResponse(f"/{owner}/{name}?{urlencode({'revision': revision})}")


def _authenticated(hub: Hub, token: str) -> Caller:
    with hub.db.read() as session:
        return authenticate(session, f"Bearer {token}")


def _found(hub: Hub, caller: Caller, asked: Mapping[str, Any]) -> dict[str, Any]:
    with hub.db.read() as session:
        return search.search(session, caller, **{key: value for key, value in asked.items() if value})


def _owned(hub: Hub, caller: Caller, owner: str) -> dict[str, Any]:
    with hub.db.read() as session:
        items = search.search(session, caller, author=owner, limit=OWNED)["items"]
        return {"items": items, "collections": collections.listing(session, caller, owners=[owner], limit=OWNED)}


def _collection(hub: Hub, caller: Caller, slug: str) -> tuple[Shown, list[dict[str, Any]]]:
    """The collection, and each of its items as a line of the catalogue with its note."""
    with hub.db.read() as session:
        shown = collections.get(session, caller, slug)
        notes = {repo.full_name: item.note for item, repo in shown.items}
        lines = search.lines(session, caller, [repo.id for _, repo in shown.items])
        return shown, [line | {"note": notes[line["id"]]} for line in lines]


def query(values: Mapping[str, str | None]) -> str:
    """ "?name=value" of those that are not empty, "" where all are."""
    said = {name: value for name, value in values.items() if value}
    return f"?{urlencode(said)}" if said else ""


def _repository(hub: Hub, caller: Caller, repo_id: str, revision: str | None, path: str | None) -> dict[str, Any]:
    repo = describe.repo_view(hub, caller, repo_id, revision, path)
    owner, _, name = repo["id"].partition("/")
    title, picture = _picture(hub, caller, repo)
    files_url = f"/{repo['id']}/resolve/{repo['commit']}/"
    return {
        "repo": repo,
        "owner": owner,
        "name": name,
        # S704: what cards.render gives is sanitised by an allow-list
        "card_html": Markup(cards.render(repo["card_text"], files_url)) if repo["card_text"] else None,  # noqa: S704
        "gate": gates.form(repo["card"]),
        "waiting": _waiting(hub, caller, repo["id"]) if repo["gated"] else [],
        "heatmap": picture,
        "heatmap_title": title,
        "lineage": lineage(repo["id"], repo["lineage"]["parents"], repo["lineage"]["children"]),
    }


def _waiting(hub: Hub, caller: Caller, repo_id: str) -> list[tuple[AccessRequest, Account]]:
    with hub.db.read() as session:
        return gates.waiting(session, caller, repos.find(session, caller, repo_id), WAITING)


def _picture(hub: Hub, caller: Caller, repo: Mapping[str, Any]) -> tuple[str, Heatmap | None]:
    """The norms of the patch by layer and module; how many sites it touches, until a job has read the norms.

    None where a repository holds several patches in folders: each has a picture on its own page.
    """
    patch = next((patch for patch in repo["patches"] if patch["kind"] != "model"), None)
    if patch is None or (patch["path"] and len(repo["patches"]) > 1):
        return "", None
    try:
        sites = layers.picture(hub, caller, repo["id"], repo["commit"], patch["path"])["sites"]
    except Refused:  # gated: what the weights say is for those who may read them
        sites = []
    if sites:
        return "How much the patch changes each module", heatmap(sites, "‖ΔW‖, Frobenius")
    counted = [{"layer": layer, "module": "touched sites", "norm": count} for layer, count in patch["layers"].items()]
    return "How many modules the patch touches in each layer", heatmap(counted, "sites")


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("adapterhub.hub.web"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(FILTERS)
    return environment


@lru_cache
def _asset(name: str) -> str:
    """The address of a static file, with a mark of its content so that browsers may keep it."""
    return f"/static/{name}?{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"
