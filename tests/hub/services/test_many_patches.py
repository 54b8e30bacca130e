"""One repository of many patches in sub-folders: looked at once, listed, searched, addressed and merged singly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlmodel import col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Patch
from adapterhub.hub.errors import InvalidRequest, PatchNotFound
from adapterhub.hub.services import describe, ingest, patch_list, repos, search
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.commits import AddRegular, DeleteFile, Operation, commit
from adapterhub.hub.services.describe import repo_view
from adapterhub.hub.services.resolve import resolve_expression
from adapterhub.merging.native_runtime import write_runtime
from adapterhub.merging.patch import Facts
from tests.hub.services.samples import lora, model

MANY = 40


def push(hub: Hub, caller: Caller, repo_id: str, *operations: Operation) -> str:
    return commit(hub, caller, repo_id, "main", operations, "push").oid


@pytest.fixture
def voices(hub: Hub, ann: Caller) -> str:
    """A repository of MANY patches on one base."""
    repos.create(hub, ann, "ann/base")
    push(hub, ann, "ann/base", *model())
    repos.create(hub, ann, "ann/voices")
    files = [one for number in range(MANY) for one in lora("ann/base", folder=f"speaker-{number:02}/")]
    push(hub, ann, "ann/voices", *files)
    return "ann/voices"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the patches whose files are read, as it happens."""
    paths: list[str] = []
    look = ingest._look

    def told(hub: Hub, caller: Caller, folder: object, facts: Facts, *rest: object) -> object:
        paths.append(facts.path)
        return look(hub, caller, folder, facts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ingest, "_look", told)
    return paths


def rows(hub: Hub, oid: str) -> list[dict[str, object]]:
    with hub.db.read() as session:
        found = session.scalars(select(Patch).where(col(Patch.commit_oid) == oid).order_by(col(Patch.path)))
        return [row.model_dump(exclude={"id", "commit_oid", "created_at"}) for row in found]


def test_a_commit_looks_only_at_the_patches_it_changes(
    hub: Hub, ann: Caller, voices: str, looked_at: list[str]
) -> None:
    before = rows(hub, push(hub, ann, voices, AddRegular("notes.txt", b"x")))
    assert looked_at == []
    assert len(before) == MANY
    after = rows(hub, push(hub, ann, voices, *lora("ann/base", r=3, folder="speaker-07/")))
    assert looked_at == ["speaker-07"]
    assert [row["rank_max"] for row in after] == [3 if number == 7 else 2 for number in range(MANY)]
    assert [row for row in after if row["path"] != "speaker-07"] == [
        row for row in before if row["path"] != "speaker-07"
    ]


def test_a_patch_whose_base_is_not_here_yet_is_looked_at_again(hub: Hub, ann: Caller, looked_at: list[str]) -> None:
    repos.create(hub, ann, "ann/voices")
    push(hub, ann, "ann/voices", *lora("ann/base", folder="one/"))
    repos.create(hub, ann, "ann/base")
    push(hub, ann, "ann/base", *model())
    push(hub, ann, "ann/voices", AddRegular("notes.txt", b"x"))
    assert looked_at.count("one") == 2
    (patch,) = repo_view(hub, ann, "ann/voices")["patches"]
    assert patch["base"]["repository"] == "ann/base"


def test_a_patch_that_is_gone_is_known_no_more(hub: Hub, ann: Caller, voices: str) -> None:
    gone = [DeleteFile(f"speaker-03/{name}") for name in ("adapter_config.json", "adapter_model.safetensors")]
    push(hub, ann, voices, *gone)
    assert "speaker-03" not in [one["path"] for one in repo_view(hub, ann, voices)["patches"]]


def test_they_are_listed_a_page_at_a_time(hub: Hub, ann: Caller, voices: str) -> None:
    seen: list[str] = []
    after = ""
    while True:
        page = patch_list.listing(hub, ann, voices, limit=15, after=after)
        seen += [one["path"] for one in page["items"]]
        after = page["after"]
        assert page["total"] == MANY
        if not after:
            break
    assert seen == [f"speaker-{number:02}" for number in range(MANY)]


def test_they_are_found_by_words_of_their_folder(hub: Hub, ann: Caller, voices: str) -> None:
    page = patch_list.listing(hub, ann, voices, query="Speaker 17")
    assert [one["path"] for one in page["items"]] == ["speaker-17"]
    assert patch_list.listing(hub, ann, voices, query="%")["total"] == 0
    assert patch_list.listing(hub, ann, voices, query="speaker", kind="sparse")["total"] == 0
    with pytest.raises(InvalidRequest, match="at most 200"):
        patch_list.listing(hub, ann, voices, query="a" * 201)


def test_the_catalogue_names_the_folders_that_a_search_means(hub: Hub, ann: Caller, voices: str) -> None:
    with hub.db.read() as session:
        (line,) = search.search(session, ann, "speaker-17")["items"]
        assert (line["id"], line["patch_count"], line["folders"]) == (voices, MANY, ["speaker-17"])
        (line,) = search.search(session, ann, "voices")["items"]
        assert line["folders"] == []


def test_the_view_of_a_repository_holds_one_hundred_of_them(
    hub: Hub, ann: Caller, voices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe, "PATCHES", 10)
    view = repo_view(hub, ann, voices)
    assert (len(view["patches"]), view["patch_count"], view["problem_count"]) == (10, MANY, 0)
    (one,) = repo_view(hub, ann, voices, path="speaker-31")["patches"]
    assert one["path"] == "speaker-31"
    with pytest.raises(PatchNotFound, match="speaker-99"):
        repo_view(hub, ann, voices, path="speaker-99")


def test_a_folder_that_is_none_names_a_near_one(hub: Hub, ann: Caller, voices: str) -> None:
    with pytest.raises(InvalidRequest, match="name one of ann/voices/speaker-33"):
        resolve_expression(hub, ann, f"ann/base + {voices}/spekaer-33")


def test_a_native_patch_says_what_it_needs_and_how_it_was_made(hub: Hub, ann: Caller, tmp_path: Path) -> None:
    vector = np.ones(8, np.float32)
    said: dict[str, Any] = {"contract": {"invocation_tokens": ["<sad>"]}, "training": {"method": "DPO", "hours": 2}}
    write_runtime(tmp_path / "mood", "steering", modules={"model.layers.0": {"vector": vector}}, **said)
    repos.create(hub, ann, "ann/mood")
    push(hub, ann, "ann/mood", *(AddRegular(file.name, file.read_bytes()) for file in (tmp_path / "mood").iterdir()))
    (patch,) = repo_view(hub, ann, "ann/mood")["patches"]
    assert {name: patch[name] for name in said} == said


def test_each_is_addressed_by_its_folder(hub: Hub, ann: Caller, voices: str) -> None:
    resolved = resolve_expression(hub, ann, f"ann/base + 0.5*{voices}/speaker-17")
    assert sorted(one.path for one in resolved.inputs.values()) == ["", "speaker-17"]
