"""A repository in the client's words: the JSON that huggingface_hub's ModelInfo reads.

Differs: `gguf`, `evalResults`, `inference` and `resourceGroup` are always left out, since nothing here knows them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlmodel import Session

from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.db.tables import Repository, RevisionFacts
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.services import lineage, tags, trees
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.trees import Entry

EXPANDABLE = frozenset(
    """
    author baseModels cardData childrenModelCount config createdAt disabled downloads downloadsAllTime evalResults gated
    gguf inference inferenceProviderMapping lastModified library_name likes mask_token model-index pipeline_tag private
    resourceGroup safetensors sha siblings spaces tags transformersInfo trendingScore usedStorage widgetData xetEnabled
    """.split()  # noqa: SIM905  a list of words reads best as words
)
"""Every field that some client may ask for by `expand`."""

_Extra = Callable[[Session, Caller, Repository, RevisionFacts | None], Any]

_EXTRAS: Mapping[str, _Extra] = {
    "baseModels": lambda session, caller, repo, facts: [base["name"] for base in facts.base_models] if facts else [],
    "childrenModelCount": lambda session, caller, repo, facts: lineage.count_children(session, caller, repo),
    "downloadsAllTime": lambda session, caller, repo, facts: repo.downloads,
    "inferenceProviderMapping": lambda session, caller, repo, facts: [],
    "spaces": lambda session, caller, repo, facts: [],
    "trendingScore": lambda session, caller, repo, facts: repo.downloads,
    "usedStorage": lambda session, caller, repo, facts: trees.stored_bytes(session, repo),
    "xetEnabled": lambda session, caller, repo, facts: True,
}
"""Fields that are looked up only where they are asked for."""


def check_expand(expand: Collection[str]) -> None:
    """Pass when every name is a field of a model. Raises InvalidRequest naming those that are."""
    unknown = sorted(set(expand) - EXPANDABLE)
    if unknown:
        raise InvalidRequest(
            f"expand: {', '.join(unknown)} is no field of a model; one of {', '.join(sorted(EXPANDABLE))}"
        )


def model_json(
    session: Session,
    caller: Caller,
    repo: Repository,
    commit: str,
    *,
    files: Sequence[Entry] | None = None,
    with_blobs: bool = False,
    extras: Collection[str] = (),
) -> dict[str, Any]:
    """`repo` at `commit`. files: its files there, None to leave them out; with_blobs: with their sizes and names.

    extras: fields besides those that every answer has; other names than theirs are not looked at.
    """
    facts = session.get(RevisionFacts, (repo.id, commit))
    shape: dict[str, Any] = {
        "_id": repo.id,
        "id": repo.full_name,
        "modelId": repo.full_name,
        "author": repo.full_name.partition("/")[0],
        "sha": commit,
        "lastModified": timestamp(repo.updated_at),
        "createdAt": timestamp(repo.created_at),
        "private": repo.is_private,
        "gated": repo.gated or False,
        "disabled": repo.disabled_at is not None,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "tags": [],
    }
    if facts is not None:
        shape |= _facts_json(facts)
    if files is not None:
        shape["siblings"] = [_sibling(file, with_blobs=with_blobs) for file in files]
    return shape | {name: _EXTRAS[name](session, caller, repo, facts) for name in extras if name in _EXTRAS}


def _facts_json(facts: RevisionFacts) -> dict[str, Any]:
    """What is known of the commit; fields with nothing in them are left out."""
    config, card = facts.config, facts.card
    shape = {
        "library_name": facts.library,
        "pipeline_tag": facts.pipeline_tag,
        "config": config,
        "mask_token": config.get("tokenizer_config", {}).get("mask_token"),
        "transformersInfo": tags.transformers_info(config),
        "widgetData": card.get("widget"),
        "model-index": card.get("model-index"),
    }
    if facts.parameters:
        shape["safetensors"] = {"parameters": facts.parameters, "total": facts.parameter_count}
    return {"tags": facts.tags, "cardData": card, **{name: value for name, value in shape.items() if value}}


def _sibling(file: Entry, *, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": file.path}
    shape: dict[str, Any] = {"rfilename": file.path, "size": file.size_bytes, "blobId": file.oid}
    if file.is_lfs:
        sha256 = file.digest.removeprefix("sha256:")
        shape["lfs"] = {"sha256": sha256, "size": file.size_bytes, "pointerSize": file.pointer_bytes}
    return shape
