"""A repository of a hub as a folder: only what is asked for is fetched, so a patch is inspected from its header."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adapterhub.cli.client import Client
from adapterhub.cli.source import CommitFolder, Item, SourceCommit, Wishes
from adapterhub.cli.sources.hf import HfSource


@contextmanager
def repository(client: Client, repo_id: str, revision: str | None) -> Iterator[CommitFolder]:
    """The files of a repository at the client's hub. Raises Missing, SourceFailed."""
    source = HfSource(repo_id, Wishes(client.endpoint, client.token))
    try:
        item, commit = Item(repo_id, f"hf:{repo_id}"), SourceCommit(revision or "main", "")
        yield CommitFolder(source, item, commit, {file.path: file for file in source.files(item, commit)})
    finally:
        source.close()
