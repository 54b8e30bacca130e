"""Repositories: made, deleted, moved, configured, described. Source: huggingface_hub/hf_api.py."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel
from sqlmodel import Session
from starlette.responses import JSONResponse

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.errors import domain_response
from adapterhub.hub.api.hf.addressing import RepoId, find, find_commit, read, write
from adapterhub.hub.api.hf.other_types import refuse_other_types
from adapterhub.hub.api.hf.shapes import check_expand, model_json
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.errors import RepoExists
from adapterhub.hub.services import repos, trees
from adapterhub.hub.services.access import Caller, require_content, require_signed_in, require_write

router = APIRouter(route_class=RawRoute)


Expand = Annotated[Sequence[str], Query()]
"""The names of the fields wanted, each a parameter of its own."""


class RepoName(BaseModel):
    """A repository as create and delete name it. organization: the namespace, by default the caller's own."""

    name: str
    organization: str | None = None
    type: str | None = None

    def repo_id(self, caller: Caller) -> str:
        """The name in full, where no namespace is said in the caller's own. Raises UnsupportedRepoType."""
        refuse_other_types(self.type)
        if "/" in self.name:
            return self.name
        return f"{self.organization or caller.name or ''}/{self.name}"


class NewRepo(RepoName):
    """A repository to make; older clients say `private`, newer ones `visibility`."""

    private: bool = False
    visibility: Literal["public", "private"] | None = None


class Move(BaseModel):
    """A repository's names before and after."""

    fromRepo: str  # noqa: N815  the client's spelling
    toRepo: str  # noqa: N815
    type: str | None = None


class RepoSettings(BaseModel):
    """What to change; absent fields stay."""

    private: bool | None = None
    visibility: Literal["public", "private"] | None = None
    gated: Literal["auto", "manual", False] | None = None


@router.post("/api/repos/create")
async def create(hub: HubDep, caller: CallerDep, public_url: PublicUrl, new: NewRepo) -> Response:
    """Make a repository. When it is there already, a 409 whose body names it too, which `exist_ok=True` reads."""
    require_signed_in(caller)
    repo_id = new.repo_id(caller)
    private = new.private if new.visibility is None else new.visibility == "private"
    try:
        repo = await threads.run(lambda: repos.create(hub, caller, repo_id, private=private))
    except RepoExists as error:
        return exists_already(public_url, error)
    return JSONResponse({"url": f"{public_url}/{repo.full_name}", "name": repo.full_name, "id": repo.id})


def exists_already(public_url: str, error: RepoExists) -> Response:
    """The reply to who makes a repository that is there: its body names it too, which `exist_ok=True` reads."""
    told = domain_response("/api/repos/create", error)
    body = {"error": str(error), "url": f"{public_url}/{error.repo_id}", "name": error.repo_id}
    headers = {name: told.headers[name] for name in ("X-Error-Code", "X-Error-Message")}
    return JSONResponse(body, told.status_code, headers)


@router.delete("/api/repos/delete")
async def delete(hub: HubDep, caller: CallerDep, named: RepoName) -> None:
    """Delete a repository; its name is not given again."""
    repo_id = named.repo_id(caller)
    await write(hub, lambda session: repos.delete(session, caller, repo_id))


@router.post("/api/repos/move")
async def move(hub: HubDep, caller: CallerDep, public_url: PublicUrl, names: Move) -> dict[str, str]:
    """Give a repository another name; requests for the old one are redirected."""
    refuse_other_types(names.type)
    repo = await write(hub, lambda session: repos.move(session, caller, names.fromRepo, names.toRepo))
    return {"url": f"{public_url}/{repo.full_name}"}


@router.put("/api/models/{namespace}/{name}/settings")
async def update_settings(hub: HubDep, caller: CallerDep, repo_id: RepoId, wanted: RepoSettings) -> dict[str, Any]:
    """Change who may see the repository."""
    private = wanted.private if wanted.visibility is None else wanted.visibility == "private"

    def work(session: Session) -> dict[str, Any]:
        find(session, caller, repo_id)
        repo = repos.update_settings(session, caller, repo_id, private=private, gated=wanted.gated)
        return {"private": repo.is_private, "gated": repo.gated or False}

    return await write(hub, work)


@router.get("/api/models/{namespace}/{name}/auth-check")
async def check_read(hub: HubDep, caller: CallerDep, repo_id: RepoId) -> None:
    """200 when the caller may read the repository and its files. Raises RepoNotFound, GatedRepo, DisabledRepo."""
    await read(hub, lambda session: require_content(session, caller, find(session, caller, repo_id)))


@router.get("/api/models/{namespace}/{name}/auth-check/write")
async def check_write(hub: HubDep, caller: CallerDep, repo_id: RepoId) -> None:
    """200 when the caller may write to the repository. Raises RepoNotFound, NotAuthenticated, Forbidden."""
    await read(hub, lambda session: require_write(session, caller, find(session, caller, repo_id)))


@router.get("/api/models/{namespace}/{name}")
@router.get("/api/models/{namespace}/{name}/revision/{revision}")
async def info(
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    repo_id: RepoId,
    revision: str | None = None,
    blobs: bool = False,
    expand: Expand = (),
) -> dict[str, Any]:
    """The repository at a revision. expand: only these fields, besides the id.

    Raises RevisionNotFound, and InvalidRequest for a field that no model has.
    """
    check_expand(expand)

    def work(session: Session) -> dict[str, Any]:
        repo, commit = find_commit(session, caller, repo_id, revision)
        response.headers["X-Repo-Commit"] = commit
        files = trees.files(session, repo, commit) if blobs or not expand or "siblings" in expand else None
        extras = expand or ("usedStorage", "spaces")
        return model_json(session, caller, repo, commit, files=files, with_blobs=blobs, extras=extras)

    return only_expanded(await read(hub, work), expand)


def only_expanded(model: dict[str, Any], expand: Sequence[str]) -> dict[str, Any]:
    """`model` with its ids and the fields in `expand`; all of it when nothing is asked for."""
    return model if not expand else {k: v for k, v in model.items() if k in ("_id", "id", *expand)}
