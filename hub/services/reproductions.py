"""Results made again by the recipe that they carry, and compared with what is committed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job, Repository
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import jobs, merges, mirror_reading, publish, recipe_inputs, recipes, refs, repos
from adapterhub.hub.services.access import Caller, require_content
from adapterhub.hub.services.merges import Engine
from adapterhub.hub.services.mirror_inputs import Wanted
from adapterhub.hub.services.resolve import Resolved, resolve_recipe
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.recipes.rebuilding import MAX_BYTES, Rebuilt, rebuilt

KIND = "reproduce"

EXECUTION = "execution.json"

Comparer = Callable[[Path, Folder, Mapping[str, Any]], dict[str, Any]]
"""`(result, committed, what its execution says)` -> the verdict. Source: merging/reproduction.py, `verdict`."""


def request(hub: Hub, caller: Caller, repo_id: str, revision: str | None = None) -> Job:
    """A job that makes the result in a repository again and compares; asking again while it runs gives the same job.

    Raises RepoNotFound, RevisionNotFound, GatedRepo; InvalidRequest for a repository without recipe.json;
    InvalidRecipe, RecipeTooLarge; UnknownName for an input that is gone or hidden; and as `merging.plan.plan`.
    """
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        require_content(session, caller, repo)
        commit = refs.resolve(session, repo, revision)
    found, resolved = _resolved(hub, caller, repo, commit)
    recipes.planned_recipe(hub, resolved, as_kind=found.as_kind, dtype=found.dtype)
    payload = {"repository_id": repo.id, "commit": commit, **jobs.power_of(caller)}
    key = f"{jobs.asker(caller)} {repo.id} {commit}"
    return hub.jobs.submit(KIND, payload, key=key, owner_id=caller.account_id)


def inputs(hub: Hub, job: Job) -> list[Wanted]:
    """What the job reads: the result, and its inputs. Raises as `request`."""
    caller, repo, commit = _asked(hub, job)
    _, resolved = _resolved(hub, caller, repo, commit)
    return [Wanted(repo, commit), *resolved.wanted]


def run(hub: Hub, job: Job, report: Report, *, engine: Engine, comparer: Comparer) -> Mapping[str, Any]:
    """The verdict on the result that the job names, made again here; the job's result."""
    caller, repo, commit = _asked(hub, job)
    found, resolved = _resolved(hub, caller, repo, commit)
    plan = recipes.planned_recipe(hub, resolved, as_kind=found.as_kind, dtype=found.dtype)
    committed = _folder(hub, repo, commit)
    with publish.workplace(hub, job) as out:
        engine(plan, out, progress=merges.shown(report), cancelled=report.cancelled)
        verdict = comparer(out, committed, _execution(committed))
    return {"repo": repo.full_name, "commit": commit, "recipe_digest": plan.recipe_digest, **verdict}


def _asked(hub: Hub, job: Job) -> tuple[Caller, Repository, str]:
    with hub.db.read() as session:
        caller = jobs.caller_of(session, job)
        repo = session.get_one(Repository, str(job.payload["repository_id"]))
        require_content(session, caller, repo)
    return caller, repo, str(job.payload["commit"])


def _resolved(hub: Hub, caller: Caller, repo: Repository, commit: str) -> tuple[Rebuilt, Resolved]:
    folder = _folder(hub, repo, commit)
    if recipe_inputs.FILE not in folder.names():
        raise InvalidRequest(f"{repo.full_name}: holds no {recipe_inputs.FILE}, so nobody knows what it was made of")
    found = rebuilt(folder.read(recipe_inputs.FILE, 0, MAX_BYTES + 1))
    return found, resolve_recipe(hub, caller, found.recipe)


def _folder(hub: Hub, repo: Repository, commit: str) -> Folder:
    with hub.db.read() as session:
        return mirror_reading.folder(session, hub, repo, commit)


def _execution(committed: Folder) -> Mapping[str, Any]:
    """What the result says of its execution; {} where it says nothing that can be read."""
    if EXECUTION not in committed.names():
        return {}
    try:
        said = json.loads(committed.read(EXECUTION, 0, MAX_BYTES))
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
