"""Folding by peft in a confined child: the same numbers as here, and nothing in reach of a hostile patch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import FourierFTConfig, HiraConfig, PeftType, get_peft_model, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

from adapterhub.merging import patches, sandbox, skeleton
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.effects import part
from adapterhub.merging.errors import InvalidPatch, NotFoldable
from adapterhub.merging.fingerprint import parameter_digests
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input, input_digest
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny
from tests.merging.exactness.compare import read, trained

TARGETS = ["q_proj", "down_proj"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.saved(tiny.llama(), tmp_path / "base")


def saved(folder: Path, config: Any, *, seed: int = 1) -> Path:
    trained(tiny.llama(), config, folder, seed=seed)
    return folder


def changed(folder: Path, **options: Any) -> Path:
    """The adapter in a folder with other values in its configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    return folder


# ---- the child -------------------------------------------------------------------------------------------------------


def test_the_child_folds_and_each_site_is_read_from_one_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FourierFTConfig(target_modules=TARGETS, n_frequency=9, scaling=20.0)
    patch = saved(tmp_path / "patch", config)
    runs = []
    call = sandbox.call

    def counted(*arguments: Any) -> Any:
        runs.append(arguments)
        return call(*arguments)

    monkeypatch.setattr(sandbox, "call", counted)
    monkeypatch.setattr(skeleton, "GROUP_BYTES", 1)  # each module in a group of its own
    terms = {term.site: term for term in read(patch, base).terms}
    model = tiny.llama()
    model.name_or_path = "tiny/base"
    adapted: Any = get_peft_model(model, config)
    set_peft_model_state_dict(adapted, load_file(patch / "adapter_model.safetensors"))
    expected = adapted.base_model.model.model.layers[1].mlp.down_proj.get_delta_weight("default")
    found = part(terms["model.layers.1.mlp.down_proj.weight"]).fields["delta"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert all(part(term).fields for term in terms.values())
    assert len(runs) == 1


def test_a_patch_read_without_its_base_has_its_digest_and_no_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = saved(tmp_path / "patch", HiraConfig(target_modules=TARGETS, r=2))
    monkeypatch.setattr(sandbox, "call", None)
    digest = input_digest(Input("a@" + "0" * 40, LocalFolder(patch), kind="hira"))
    assert digest == read(patch, base).digest


PROBES = {
    "socket": "import socket; socket.socket()",
    "native socket": "import ctypes; assert ctypes.CDLL(None).socket(2, 1, 0) >= 0",
    "program": "import subprocess; subprocess.run(['true'])",
    "native program": "import ctypes; assert ctypes.CDLL(None).execv(b'/bin/true', None) == 0",
    "file": "open('/tmp/adapterhub-probe', 'w')",
    "memory": "bytearray(16 << 30)",
    "environment": "import os; assert 'ADAPTERHUB_SECRET_OF_A_TEST' in os.environ",
}
"""What a child may not do; each raises there."""


@pytest.mark.parametrize("probe", PROBES)
def test_a_child_is_confined(probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_SECRET_OF_A_TEST", "1")
    module = tmp_path / "probing_child.py"
    module.write_text(f"from adapterhub.merging import sandbox\ndef work(request, folder):\n    {PROBES[probe]}\n")
    module.write_text(module.read_text() + "sandbox.serve(work)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(sandbox.ChildFailed) as refused:
        sandbox.call("probing_child", {}, folder, sandbox.Limits(4 << 30, 60))
    assert refused.value.kind in ("PermissionError", "AssertionError", "MemoryError")


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_child.py").write_text(
        "from adapterhub.merging.sandbox import serve\ndef work(request, folder):\n    while True: pass\nserve(work)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(sandbox.ChildFailed, match=r"more than the 1 second|status -"):
        sandbox.call("slow_child", {}, folder, sandbox.Limits(4 << 30, 1))


# ---- foreign configurations ------------------------------------------------------------------------------------------

HOSTILE: list[dict[str, Any]] = [
    {"_custom_modules": {"torch.nn.Linear": "os.system"}},
    {"custom_class": "os.system"},
    {"corda_config": {"cache_file": "/etc/passwd"}},
    {"eva_config": {"rho": 2.0}},
    {"loftq_config": {"loftq_bits": 4}},
    {"r": 1 << 40},
    {"r": 1e300},
    {"r": "2"},
    {"r": True},
    {"rank_pattern": {"(a+)+$": 2}},
    {"rank_pattern": {"q_proj": "os"}},
    {"runtime_config": {"ephemeral_gpu_offload": True}},
]


@pytest.mark.parametrize("options", HOSTILE, ids=str)
def test_a_hostile_configuration_is_refused(
    options: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = changed(saved(tmp_path / "patch", HiraConfig(target_modules=TARGETS, r=2)), **options)
    monkeypatch.setattr(sandbox, "call", None)
    with pytest.raises(InvalidPatch, match=r"adapter_config\.json"):
        read(patch, base)
    (facts,) = patches.inspect(LocalFolder(patch))
    assert facts.problems


def test_names_of_classes_that_peft_itself_writes_are_not_looked_at(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapping = {"base_model_class": "Evil", "parent_library": "evil_module"}
    patch = changed(saved(tmp_path / "patch", HiraConfig(target_modules=TARGETS, r=2)), auto_mapping=mapping)
    asked: list[Any] = []

    def call(module: str, request: Any, folder: Path, limits: Any) -> Any:
        asked.append(request)
        raise sandbox.ChildFailed("", "not run")

    monkeypatch.setattr(sandbox, "call", call)
    (term, *_) = read(patch, base).terms
    with pytest.raises(NotFoldable, match="not run"):
        term.fields["value"].read()
    assert "evil" not in json.dumps(asked).lower()
    assert asked[0]["config"] == {"r": 2, "rank_pattern": {}}


@pytest.mark.slow
def test_a_tensor_of_a_wrong_shape_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    patch = saved(tmp_path / "patch", HiraConfig(target_modules=TARGETS, r=2))
    tensors = load_file(patch / "adapter_model.safetensors")
    name = next(one for one in tensors if one.endswith("hira_A"))
    tensors[name] = tensors[name][:, 1:].contiguous()
    save_file(tensors, patch / "adapter_model.safetensors", {"format": "pt"})
    (term, *_) = read(patch, base).terms
    with pytest.raises(InvalidPatch, match="hira_A is"):
        term.fields["value"].read()


# ---- with other patches ----------------------------------------------------------------------------------------------


def _plan(base: Path, text: str, **folders: Path) -> Any:
    inputs = {
        ref: Input(f"{ref.name}@{'0' * 40}", LocalFolder(base), kind="model")
        if ref.name == "base"
        else Input(
            f"{ref.name}@{'0' * 40}",
            LocalFolder(folders[ref.name]),
            kind=patches.inspect(LocalFolder(folders[ref.name]))[0].kind,
        )
        for ref in parse(text).references()
    }
    return plan(parse(text), inputs, memory_bytes=1 << 30)


def test_additive_ones_add_up_and_affine_ones_need_an_order(base: Path, tmp_path: Path) -> None:
    fourier = FourierFTConfig(target_modules=TARGETS, n_frequency=9, scaling=20.0)
    a = saved(tmp_path / "a", fourier)
    b = saved(tmp_path / "b", fourier, seed=2)
    h = saved(tmp_path / "h", HiraConfig(target_modules=TARGETS, r=2))
    assert _plan(base, "base + 0.5*a + b", a=a, b=b).touched
    with pytest.raises(NotFoldable, match="declare the order"):
        _plan(base, "base + a + h", a=a, h=h)
    assert _plan(base, "sequence(base; h, a)", a=a, h=h).touched
    with pytest.raises(NotFoldable, match="first of a sequence"):
        _plan(base, "sequence(base; a, h)", a=a, h=h)


@pytest.mark.slow
def test_the_outcome_can_be_kept_as_a_native_patch(base: Path, tmp_path: Path) -> None:
    patch = read(saved(tmp_path / "a", FourierFTConfig(target_modules=TARGETS, n_frequency=9)), base)
    opened = Checkpoint.open(LocalFolder(base))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    digest = skeleton.write_derived(patch, opened, tmp_path / "kept", config=config)
    manifest = json.loads((tmp_path / "kept" / "patch.json").read_text())
    assert digest.startswith("sha256:")
    assert manifest["provenance"]["parents"] == [patch.digest]
    assert manifest["provenance"]["peft_config"]["n_frequency"] == 9
    assert manifest["base"]["fingerprint"]["params"] == parameter_digests(opened, manifest["sites"])
    assert set(manifest["sites"]) == {term.site for term in patch.terms}
    stored = load_file(tmp_path / "kept" / "patch.safetensors")
    for term in patch.terms:
        assert stored[f"{term.site}::t0.delta"].numpy().tobytes() == bytes(term.fields["delta"].read())


MISSING: set[str] = set()
"""peft types that no kind claims yet."""


def test_every_type_of_the_installed_peft_is_claimed_by_a_kind(tmp_path: Path) -> None:
    claimed = set()
    for one in PeftType:
        folder = tmp_path / one.value
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": one.value}))
        if patches.inspect(LocalFolder(folder)):
            claimed.add(one.value)
    assert {one.value for one in PeftType} - claimed == MISSING
    assert set(PEFT_TYPE_TO_CONFIG_MAPPING) <= set(PeftType)
