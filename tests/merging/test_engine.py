import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.merging import engine
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder, layout
from adapterhub.merging.effects import read
from adapterhub.merging.engine import Progress, run, variant
from adapterhub.merging.errors import Cancelled, NonFinite, PlanTooLarge
from adapterhub.merging.native import select, sparse, write_patch
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.results import ResultFolder
from tests.merging import tiny

SITES = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Input]:
    """A tiny bfloat16 Llama with two LoRAs, a sparse and a mask patch, and a second full model."""
    root = tmp_path_factory.mktemp("inputs")
    tiny.saved(tiny.llama(dtype=torch.bfloat16), root / "base")
    tiny.saved(tiny.llama(seed=5, dtype=torch.bfloat16), root / "other")
    (root / "base/tokenizer.json").write_text("{}")
    for seed, targets in ((1, ["q_proj", "down_proj"]), (2, ["q_proj", "v_proj"])):
        model = tiny.llama(dtype=torch.bfloat16)
        tiny.adapter(model, root / f"lora{seed}", seed=seed, r=seed + 1, target_modules=targets)
    generator = np.random.default_rng(0)
    base = Checkpoint.open(LocalFolder(root / "base"))
    deltas = {site: generator.normal(size=base.tensors[site].shape).astype("f4") * 0.05 for site in SITES}
    write_patch(
        root / "sparse",
        sites={site: sparse(np.where(delta > 0.05, delta, 0)) for site, delta in deltas.items()},
        base={},
    )
    write_patch(root / "mask", sites={site: select(delta < 0, delta) for site, delta in deltas.items()}, base={})
    kinds = {"base": "model", "other": "model", "lora1": "lora", "lora2": "lora", "sparse": "sparse", "mask": "mask"}
    return {name: Input(f"demo/{name}@{'0' * 40}", LocalFolder(root / name), kind=kind) for name, kind in kinds.items()}


@pytest.fixture
def planned(inputs: dict[str, Input]) -> Callable[..., Plan]:
    """plan(text): the plan of an expression over the inputs, named demo/base, demo/lora1, ..."""

    def make(text: str, **options: Any) -> Plan:
        recipe = parse(text)
        found = {ref: inputs[ref.name.removeprefix("demo/")] for ref in recipe.references()}
        return plan(recipe, found, memory_bytes=1 << 30, **options)

    return make


MIXED = "demo/base + 0.7*demo/lora1 - 0.3*demo/lora2 + 0.5*demo/sparse + demo/mask + 0.1*demo/other"
WITH_METHODS = "ties(demo/base; 0.6*demo/lora1, 0.4*demo/sparse, density=0.5) + 0.2*linear(demo/lora2, demo/mask)"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_merge_is_a_complete_folder_that_transformers_loads(planned: Callable[..., Plan], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = run(planned(MIXED), tmp_path / "out")
    names = ["README.md", "config.json", "execution.json", "generation_config.json", "model.safetensors"]
    names += ["recipe.json", "tokenizer.json"]
    assert [file.name for file in result.files] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    saved = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(model.get_parameter(SITES[0]), saved[SITES[0]])


def test_the_recipe_and_the_card_say_how_it_was_made(planned: Callable[..., Plan], tmp_path: Path) -> None:
    made = planned(MIXED)
    run(made, tmp_path / "out")
    assert (tmp_path / "out/recipe.json").read_text() == made.canonical
    card = (tmp_path / "out/README.md").read_text()
    assert 'base_model: ["demo/base", "demo/lora1", "demo/lora2"' in card
    assert '["adapterhub", "merge"]' in card
    assert str(made.recipe) in card
    assert made.recipe_digest in card


@pytest.mark.parametrize("text", [MIXED, WITH_METHODS])
def test_running_twice_and_on_any_number_of_threads_gives_the_same_bytes(
    planned: Callable[..., Plan], tmp_path: Path, text: str
) -> None:
    for name, threads in (("one", 1), ("two", 2), ("again", 2)):
        run(planned(text), tmp_path / name, threads=threads)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "again")


def test_the_order_of_the_text_does_not_change_a_byte(planned: Callable[..., Plan], tmp_path: Path) -> None:
    run(planned("demo/base + 0.7*demo/lora1 + 0.5*demo/sparse + demo/lora2"), tmp_path / "one")
    run(planned("demo/base + demo/lora2 + 0.5*demo/sparse + 0.7*demo/lora1"), tmp_path / "two")
    weights = "model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() == (tmp_path / "two" / weights).read_bytes()


@pytest.mark.parametrize("text", [MIXED, WITH_METHODS])
def test_a_variant_is_the_touched_part_of_the_merge(planned: Callable[..., Plan], tmp_path: Path, text: str) -> None:
    made = planned(text)
    run(made, tmp_path / "out")
    saved = load_file(tmp_path / "out/model.safetensors")
    found = variant(made)
    assert set(found) == made.touched
    assert all(torch.equal(found[name], saved[name]) for name in found)


def test_a_variant_takes_resident_tensors_and_their_dtype(
    planned: Callable[..., Plan], inputs: dict[str, Input]
) -> None:
    made = planned("demo/base + demo/lora1")
    resident = load_file(inputs["base"].folder.path("model.safetensors"))
    before = {name: tensor.clone() for name, tensor in resident.items()}
    assert all(torch.equal(tensor, variant(made)[name]) for name, tensor in variant(made, base=resident).items())
    wide = variant(made, base={name: tensor.float() for name, tensor in resident.items()})
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    assert all(torch.equal(tensor, before[name]) for name, tensor in resident.items())


def test_untouched_tensors_are_copied_byte_for_byte(planned: Callable[..., Plan], tmp_path: Path) -> None:
    made = planned("demo/base + demo/sparse")
    result = run(made, tmp_path / "out")
    assert made.touched == frozenset(SITES)
    saved = Checkpoint.open(LocalFolder(tmp_path / "out"))
    for name, handle in made.base.tensors.items():
        assert (saved.tensors[name].read() == handle.read()) == (name not in SITES)
    assert result.report["tensors_touched"] == 2
    assert 0 < result.report["lost_to_rounding"] < 0.1


def test_large_models_are_written_in_shards_with_the_same_tensors(
    planned: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(planned(MIXED), tmp_path / "one")
    monkeypatch.setattr(engine, "SHARD_BYTES", 4000)
    run(planned(MIXED), tmp_path / "many")
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    merged = {name: tensor for shard in shards for name, tensor in load_file(tmp_path / "many" / shard).items()}
    whole = load_file(tmp_path / "one/model.safetensors")
    assert merged.keys() == whole.keys()
    assert all(torch.equal(merged[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())


def test_the_result_may_have_another_dtype(planned: Callable[..., Plan], tmp_path: Path) -> None:
    run(planned(MIXED, dtype="float32"), tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"


def test_progress_reaches_the_total(planned: Callable[..., Plan], tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(planned(MIXED), tmp_path / "out", progress=seen.append)
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert seen[-1].done == seen[-1].total > 0


@pytest.mark.parametrize("calls", [0, 1, 5])
@pytest.mark.parametrize("as_kind", [None, "lora"])
def test_a_cancelled_merge_leaves_nothing(
    planned: Callable[..., Plan], tmp_path: Path, calls: int, as_kind: str | None
) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > calls

    with pytest.raises(Cancelled):
        run(planned("demo/base + demo/lora1 + demo/lora2", as_kind=as_kind), tmp_path / "out", cancelled=cancelled)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_number_stops_the_merge_and_leaves_nothing(inputs: dict[str, Input], tmp_path: Path) -> None:
    shutil.copytree(inputs["lora1"].folder.path("adapter_config.json").parent, tmp_path / "bad")
    tensors = load_file(tmp_path / "bad/adapter_model.safetensors")
    next(tensor for name, tensor in tensors.items() if "q_proj.lora_B" in name)[0, 0] = float("nan")
    save_file(tensors, tmp_path / "bad/adapter_model.safetensors")
    bad = Input("demo/bad", LocalFolder(tmp_path / "bad"), kind="lora")
    recipe = parse("demo/base + demo/bad")
    found = {ref: inputs["base"] if ref.name == "demo/base" else bad for ref in recipe.references()}
    with pytest.raises(NonFinite, match="q_proj"):
        run(plan(recipe, found, memory_bytes=1 << 30), tmp_path / "out/deep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "out"]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_base_plus_a_whole_model_minus_the_base_is_that_model(planned: Callable[..., Plan], tmp_path: Path) -> None:
    run(planned("demo/base + demo/other"), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    other = planned("demo/other + demo/lora1").base
    assert all(
        bytes(other.tensors[name].read()) == tensor.view(torch.uint8).numpy().tobytes()
        for name, tensor in found.items()
    )


def test_the_mean_of_whole_models_is_their_mean(planned: Callable[..., Plan], tmp_path: Path) -> None:
    run(planned("demo/base + 0.5*demo/other"), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")[SITES[0]]
    first = tiny.llama(dtype=torch.bfloat16).get_parameter(SITES[0])
    second = tiny.llama(seed=5, dtype=torch.bfloat16).get_parameter(SITES[0])
    assert torch.equal(found, ((first.double() + second.double()) / 2).bfloat16())


def test_a_linear_call_is_the_sum_that_it_stands_for(planned: Callable[..., Plan], tmp_path: Path) -> None:
    run(planned("linear(demo/base; 3*demo/lora1, demo/lora2)"), tmp_path / "call")
    run(planned("demo/base + 0.75*demo/lora1 + 0.25*demo/lora2"), tmp_path / "sum")
    weights = "model.safetensors"
    assert (tmp_path / "call" / weights).read_bytes() == (tmp_path / "sum" / weights).read_bytes()


def test_a_full_disk_keeps_the_inputs_and_removes_what_was_written(
    planned: Callable[..., Plan], inputs: dict[str, Input], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(MIXED)
    before = contents(inputs["base"].folder.path("config.json").parent)
    written = 0
    pwrite = os.pwrite

    def until_full(fd: int, data: memoryview, start: int) -> int:
        nonlocal written
        written += len(data)
        if written > made.size_bytes // 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, start)

    monkeypatch.setattr(os, "pwrite", until_full)
    with pytest.raises(PlanTooLarge, match=f"takes {made.size_bytes} bytes and its disk has"):
        run(made, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert contents(inputs["base"].folder.path("config.json").parent) == before


def test_no_more_tensors_are_in_work_than_fit_into_memory(planned: Callable[..., Plan]) -> None:
    made = planned(MIXED)
    assert engine._workers(replace(made, memory_bytes=3 * made.peak_bytes), 16) == 3
    assert engine._workers(replace(made, memory_bytes=3 * made.peak_bytes), 2) == 2
    assert engine._workers(replace(made, memory_bytes=made.peak_bytes), 16) == 1


MERGE_IN_LITTLE_MEMORY = """
import sys
from pathlib import Path
from adapterhub.cli import local
folders = {name: Path(sys.argv[1]) / name for name in ("base", "a", "b")}
recipe = local.parsed({"expression": sys.argv[3]})
limits = {"as_kind": None, "dtype": None, "memory_bytes": 512 << 20}
local.merge(recipe, folders, Path(sys.argv[2]), progress=lambda at: None, **limits)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["ties(base; a, b, density=0.2)", "linear(base; a, b)"],
    ids=["ties", "linear"],
)
def test_models_larger_than_the_memory_limit_stay_below_it(tmp_path: Path, text: str) -> None:
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
        planned = {f"model.layers.0.{one}": ("BF16", (40_000, 4096)) for one in "xy"}
        tensors = layout(planned)
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.write(tensors.header)
            file.truncate(tensors.size_bytes)  # zeros that take no room on the disk
    assert tensors.size_bytes > 512 << 20
    command = [sys.executable, "-c", MERGE_IN_LITTLE_MEMORY, str(tmp_path), str(tmp_path / "out"), text]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 512 << 20, done.stdout
    assert (tmp_path / "out/model.safetensors").stat().st_size == tensors.size_bytes


KILLED_AFTER_TWO_SHARDS = """
import os, sys
from pathlib import Path
from adapterhub.merging import engine
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
engine.SHARD_BYTES = 2000
recipe = parse(sys.argv[3])
inputs = {ref: Input(ref.name, LocalFolder(Path(sys.argv[1]) / ref.name), kind="model") for ref in recipe.references()}
keep = engine.ResultFolder.keep
kept = []
def killed(self, name, *rest):
    keep(self, name, *rest)
    kept.append(name)
    if len(kept) == 2:
        os._exit(9)
engine.ResultFolder.keep = killed
engine.run(plan(recipe, inputs, memory_bytes=1 << 30), Path(sys.argv[2]))
"""
HALFWAY = "base + 0.5*other"


@pytest.fixture
def killed(inputs: dict[str, Input], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Plan]:
    """A merge into tmp_path/"out" that was killed after its second shard; gives its plan."""
    monkeypatch.setattr(engine, "SHARD_BYTES", 2000)
    root = inputs["base"].folder.path("config.json").parent.parent

    def made() -> Plan:
        recipe = parse(HALFWAY)
        found = {ref: Input(ref.name, LocalFolder(root / ref.name), kind="model") for ref in recipe.references()}
        return plan(recipe, found, memory_bytes=1 << 30)

    command = [sys.executable, "-c", KILLED_AFTER_TWO_SHARDS, str(root), str(tmp_path / "out"), HALFWAY]
    assert subprocess.run(command, check=False).returncode == 9
    assert not (tmp_path / "out").exists()
    return made


def folded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors that are computed from now on."""
    names: list[str] = []
    write = engine._write

    def noted(output: Any, *rest: Any) -> Any:
        names.append(output.name)
        return write(output, *rest)

    monkeypatch.setattr(engine, "_write", noted)
    return names


def test_a_killed_merge_goes_on_from_its_last_finished_shard(
    killed: Callable[[], Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(killed(), tmp_path / "whole")
    names = folded(monkeypatch)
    progress: list[Progress] = []
    result = run(killed(), tmp_path / "out", progress=progress.append)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    first, second = sorted(set(index.values()))[:2]
    assert sorted(names) == sorted(name for name, shard in index.items() if shard not in (first, second))
    assert progress[-1].done == progress[-1].total
    assert result == whole
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_shard_that_is_not_what_was_kept_is_made_again(
    killed: Callable[[], Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (partial,) = tmp_path.glob(".out.*.partial")
    first = min(partial.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    names = folded(monkeypatch)
    run(killed(), tmp_path / "out")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    assert {name for name, shard in index.items() if shard == first.name} <= set(names)
    assert contents(tmp_path / "out") == contents_of(killed(), tmp_path / "whole")


def contents_of(made: Plan, out: Path) -> dict[str, bytes]:
    run(made, out)
    return contents(out)


def test_a_cancelled_run_after_a_killed_one_leaves_nothing(killed: Callable[[], Plan], tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        run(killed(), tmp_path / "out", cancelled=lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_one_recipe_into_one_place_do_not_mix(killed: Callable[[], Plan], tmp_path: Path) -> None:
    made = killed()
    key = engine._key(made)
    with ResultFolder(tmp_path / "out", key=key) as one, ResultFolder(tmp_path / "out", key=key) as other:
        assert one.path != other.path
        first = min(path.name for path in one.path.glob("*.safetensors"))
        assert one.reuse(first) is not None
        assert other.reuse(first) is None


def whole_vector(text: str, made: Plan, inputs: dict[str, Input]) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """What TIES and Breadcrumbs of two dense deltas are when shares are of the whole vector, in float64."""
    names = sorted(made.touched)
    base, other = (Checkpoint.open(inputs[name].folder).tensors for name in ("base", "other"))
    W = np.concatenate([floats(base[name]).reshape(-1) for name in names])
    delta = np.concatenate([floats(other[name]).reshape(-1) for name in names]) - W
    order = np.sort(np.abs(delta))[::-1]
    kept = np.where(np.abs(delta) >= order[int(0.3 * delta.size) - 1], delta, 0)
    if "breadcrumbs" in text:
        larger = int(0.1 * delta.size)
        inside = (np.abs(delta) >= order[larger + int(0.3 * delta.size) - 1]) & (np.abs(delta) < order[larger - 1])
        kept = np.where(inside, delta, 0)
    ends = np.cumsum([base[name].numel for name in names])[:-1]
    return dict(zip(names, np.split(W + kept, ends), strict=True))


def floats(handle: Any) -> np.ndarray[Any, np.dtype[Any]]:
    found: np.ndarray[Any, np.dtype[Any]] = read(handle).double().numpy()
    return found


@pytest.mark.parametrize(
    "text",
    [
        "ties(demo/base; demo/other, density=0.3, scope=global)",
        "breadcrumbs(demo/base; demo/other, density=0.3, gamma=0.1, scope=global)",
        "breadcrumbs_ties(demo/base; demo/other, density=0.3, gamma=0.1, scope=global)",
    ],
)
def test_shares_may_be_of_the_whole_patch(
    planned: Callable[..., Plan], inputs: dict[str, Input], tmp_path: Path, text: str
) -> None:
    made = planned(text, dtype="F32")
    run(made, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    for name, expected in whole_vector(text, made, inputs).items():
        np.testing.assert_allclose(tensors[name].reshape(-1).numpy(), expected, rtol=3e-7, atol=1e-9)
    assert all(torch.equal(value, tensors[name]) for name, value in variant(made).items())
