"""A repository in the client's words: the JSON that huggingface_hub's ModelInfo reads."""

from collections.abc import Sequence
from typing import Any

from sqlmodel import Session

from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.db.tables import Repository, RevisionFacts
from adapterhub.hub.services.trees import Entry


def model_json(
    session: Session, repo: Repository, commit: str, files: Sequence[Entry] | None, *, with_blobs: bool = False
) -> dict[str, Any]:
    """`repo` at `commit`. files: its files there, None to leave them out; with_blobs: with their sizes and names."""
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
    return shape


def _facts_json(facts: RevisionFacts) -> dict[str, Any]:
    shape: dict[str, Any] = {"tags": facts.tags, "cardData": facts.card, "usedStorage": facts.size_bytes}
    if facts.library:
        shape["library_name"] = facts.library
    if facts.pipeline_tag:
        shape["pipeline_tag"] = facts.pipeline_tag
    if facts.config:
        shape["config"] = facts.config
    if facts.parameters:
        shape["safetensors"] = {"parameters": facts.parameters, "total": sum(facts.parameters.values())}
    return shape


def _sibling(file: Entry, *, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": file.path}
    shape: dict[str, Any] = {"rfilename": file.path, "size": file.size_bytes, "blobId": file.oid}
    if file.is_lfs:
        sha256 = file.digest.removeprefix("sha256:")
        shape["lfs"] = {"sha256": sha256, "size": file.size_bytes, "pointerSize": file.pointer_bytes}
    return shape
