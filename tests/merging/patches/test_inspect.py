"""Whatever lies in a repository, looking at it answers with facts, with nothing, or with one clear error."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from adapterhub.merging import native, patches
from adapterhub.merging.checkpoint import LocalFolder, MappedFolder
from adapterhub.merging.errors import BrokenContainer, InvalidPatch, MergingError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)

LORA_KEYS = ["r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save"]
LORA_KEYS += ["target_modules", "base_model_name_or_path", "revision", "fan_in_fan_out", "init_lora_weights"]
LORA_KEYS += ["use_dora", "task_type", "peft_version", "layer_replication"]
PATCH_KEYS = ["kind", "effect", "base", "sites", "provenance", "files"]


@pytest.fixture(scope="module")
def lora_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    key = "base_model.model.layers.0.q_proj."
    tensors = {key + "lora_A.weight": np.ones((2, 4), np.float32), key + "lora_B.weight": np.ones((4, 2), np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def native_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    native.write_patch(folder, sites={"w": native.sparse(np.eye(4, dtype=np.float32))}, base={"repo_id": "a/b"})
    return folder


def assert_answers(folder: Path) -> None:
    for facts in patches.inspect(LocalFolder(folder)):
        json.dumps(facts.detail)
        assert all(isinstance(sentence, str) for sentence in facts.problems)
    with contextlib.suppress(MergingError):
        assert patches.read(LocalFolder(folder)).terms is not None


@given(changes=st.dictionaries(st.sampled_from(LORA_KEYS), json_values, max_size=3))
def test_any_adapter_config_is_answered(changes: dict[str, Any], lora_folder: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, **changes}
    (lora_folder / "adapter_config.json").write_text(json.dumps(config))
    assert_answers(lora_folder)


@given(
    changes=st.dictionaries(st.sampled_from(PATCH_KEYS), json_values, max_size=2), site=json_values, term=json_values
)
def test_any_patch_manifest_is_answered(changes: dict[str, Any], site: Any, term: Any, native_folder: Path) -> None:
    original = (native_folder / "patch.json").read_text()
    manifest = json.loads(original)
    manifest["sites"]["w"].update(site if isinstance(site, dict) else {"terms": site})
    if isinstance(term, dict) and isinstance(manifest["sites"]["w"]["terms"], list):
        manifest["sites"]["w"]["terms"].append(term)
    (native_folder / "patch.json").write_text(json.dumps({**manifest, **changes}))
    try:
        assert_answers(native_folder)
    finally:
        (native_folder / "patch.json").write_text(original)


@given(text=st.binary(max_size=40))
def test_any_bytes_as_a_configuration_are_answered(text: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("junk")
    for name in ("adapter_config.json", "patch.json", "config.json"):
        (folder / name).write_bytes(text)
    (facts,) = patches.inspect(LocalFolder(folder))
    assert facts.kind == "unknown"
    assert facts.problems[0].startswith("adapter_config.json: ")
    with pytest.raises(InvalidPatch, match=r"adapter_config\.json: "):
        patches.read(LocalFolder(folder))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "a Git LFS pointer instead"),
        ('{"peft_type": "LORAX"}', "says peft_type 'LORAX', which is no type that is known here; did you mean LORA?"),
        ('{"peft_type": "FINEGATES"}', "no type that is known here; it is stored as it is"),
        ('{"wifi": 1}', "no peft_type and no key of another library that is known here (its keys: wifi)"),
    ],
)
def test_an_adapter_that_no_kind_knows_is_said_to_be_one(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert (facts.kind, facts.files) == ("unknown", ("adapter_config.json",))
    assert says in facts.problems[0]


def test_a_container_that_is_broken_is_an_error_that_names_it(lora_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(BrokenContainer, match=r"adapter_model\.safetensors"):
        patches.inspect(LocalFolder(tmp_path))


def test_a_repository_of_many_folders_is_looked_at_once(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"{}")
    folder = MappedFolder({f"f{number}/deep/config.json": (tmp_path / "x", "sha256:00", 2) for number in range(3000)})
    assert patches.inspect(folder) == []
