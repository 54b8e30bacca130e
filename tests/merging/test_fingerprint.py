"""Fingerprints: the same for the same values, whatever the files look like."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from adapterhub.merging.checkpoint import Checkpoint, LocalFolder, TensorHandle
from adapterhub.merging.fingerprint import Fingerprint, fingerprint, parameter_digests, tensor_digest
from tests.merging import tiny


def printed(folder: Path) -> Fingerprint:
    return fingerprint(Checkpoint.open(LocalFolder(folder)))


def test_a_tensor_s_digest_is_over_dtype_shape_and_bytes() -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    expected = hashlib.sha256(b"F32\x002,3\x00" + values.tobytes()).hexdigest()
    assert tensor_digest(TensorHandle.of_bytes("any", "F32", (2, 3), values.tobytes())) == "sha256:" + expected


def test_shards_do_not_change_the_fingerprint(llama_folder: Path, tmp_path: Path) -> None:
    sharded = printed(tiny.saved(tiny.llama(), tmp_path, max_shard_size="5KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert sharded == printed(llama_folder)


def test_one_changed_number_changes_the_root_and_its_parameter_alone(llama_folder: Path, tmp_path: Path) -> None:
    model = tiny.llama()
    model.get_parameter("model.norm.weight").data[3] += 1e-3
    before, after = printed(llama_folder), printed(tiny.saved(model, tmp_path))
    assert before.root != after.root
    changed = {name for name in before.parameters if before.parameters[name] != after.parameters[name]}
    assert changed == {"model.norm.weight"}


def test_another_dtype_is_another_base(llama_folder: Path, tmp_path: Path) -> None:
    half = printed(tiny.saved(tiny.llama(dtype=torch.bfloat16), tmp_path))
    assert not set(half.parameters.values()) & set(printed(llama_folder).parameters.values())


def test_tied_embeddings_are_named(gpt2_folder: Path, llama_folder: Path) -> None:
    assert printed(gpt2_folder).ties == (("transformer.wte.weight", "lm_head.weight"),)
    assert printed(llama_folder).ties == ()


def test_single_parameters_are_digested_without_the_others(llama_folder: Path) -> None:
    checkpoint = Checkpoint.open(LocalFolder(llama_folder))
    whole = fingerprint(checkpoint).parameters
    assert parameter_digests(checkpoint, ["model.norm.weight", "absent"]) == {
        "model.norm.weight": whole["model.norm.weight"]
    }
