"""Bases whose layers are repeated: names, order, configuration, and what has no such form."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from adapterhub.merging import patches
from adapterhub.merging.analysis.norms import layer_norms
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.convert import to_dense, to_kind
from adapterhub.merging.errors import BaseMismatch, InvalidPatch, NotFoldable, NotRepresentable
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.replicas import layer_ranges, replicated
from adapterhub.merging.transfer.report import portability
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import prepared, trained

LAYERS = 4


class Fake:
    """Stands for a tensor's handle: only its identity counts."""


def base(**config: Any) -> Checkpoint:
    tensors: dict[str, Any] = {f"model.layers.{n}.{w}.weight": Fake() for n in range(LAYERS) for w in ("q", "k")}
    tensors["model.embed_tokens.weight"] = Fake()
    return Checkpoint(tensors, {"num_hidden_layers": LAYERS, **config})


ranges = st.lists(
    st.integers(0, LAYERS - 1).flatmap(lambda start: st.tuples(st.just(start), st.integers(start + 1, LAYERS))),
    min_size=1,
    max_size=5,
)


@given(ranges)
def test_every_copy_is_the_layer_it_was_made_of(said: list[tuple[int, int]]) -> None:
    short = base(layer_types=["full", "sliding"] * 2)
    long = replicated(short, layer_ranges({"layer_replication": [list(one) for one in said]}, "x"))
    order = [number for start, end in said for number in range(start, end)]
    for place, number in enumerate(order):
        for w in ("q", "k"):
            made, source = f"model.layers.{place}.{w}.weight", f"model.layers.{number}.{w}.weight"
            assert long.tensors[made] is short.tensors[source]
    assert len(long.tensors) == 2 * len(order) + 1
    assert long.config["num_hidden_layers"] == len(order)
    assert long.config["layer_types"] == [short.config["layer_types"][number] for number in order]


@pytest.mark.parametrize("said", [5, [[0]], [[2, 1]], [["0", 1]], [[-1, 2]], [[0, 10**9]], [[True, 2]]])
def test_ranges_that_are_none_are_refused(said: Any) -> None:
    with pytest.raises(InvalidPatch, match="layer_replication"):
        layer_ranges({"layer_replication": said}, "adapter_config.json")


def test_a_base_with_too_few_layers_or_two_lists_of_them_is_refused() -> None:
    with pytest.raises(BaseMismatch, match="4 layers; layer_replication wants 9"):
        replicated(base(), ((0, 9),))
    both: dict[str, Any] = {f"{part}.layers.0.q.weight": Fake() for part in ("encoder", "decoder")}
    with pytest.raises(BaseMismatch, match="2 lists"):
        replicated(Checkpoint(both), ((0, 1),))


def test_patches_that_repeat_layers_differently_are_not_mixed(tmp_path: Path) -> None:
    llama = ARCHITECTURES["llama"]
    config = LoraConfig(target_modules=["q_proj"], layer_replication=[(0, 2), (0, 2)], r=2)
    folder, longer, _ = prepared(llama, "float32", config, tmp_path)
    trained(llama.make(), LoraConfig(target_modules=["q_proj"], r=2), tmp_path / "plain")
    folders = {"base": ("model", folder), "a": ("lora", longer), "b": ("lora", tmp_path / "plain")}
    recipe = parse("base + a + b")
    inputs = {
        ref: Input(f"x/{ref.name}", LocalFolder(folders[ref.name][1]), kind=folders[ref.name][0])
        for ref in recipe.references()
    }
    for form in (None, "lora"):
        with pytest.raises(NotFoldable, match=r"x/a: repeats layers of .* and x/b does not repeat the same"):
            plan(recipe, inputs, as_kind=form, memory_bytes=1 << 30)


def test_their_sum_is_written_as_an_adapter_that_repeats_them_too(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], layer_replication=[(0, 2), (0, 2)], r=2)
    folder, longer, _ = prepared(ARCHITECTURES["llama"], "float32", config, tmp_path)
    opened = Checkpoint.open(LocalFolder(folder))
    patch = patches.read(LocalFolder(longer), base=opened)
    export = patches.kinds()["lora"].export
    assert export is not None
    made = export([(0.5, patch)], "x/base", opened)
    assert made.files["adapter_config.json"]["layer_replication"] == [[0, 2], [0, 2]]


def test_it_is_measured_ported_and_converted_as_the_longer_model(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], layer_replication=[(0, 2), (0, 2)], r=2)
    folder, longer, _ = prepared(ARCHITECTURES["llama"], "float32", config, tmp_path)
    opened = Checkpoint.open(LocalFolder(folder))
    patch = patches.read(LocalFolder(longer), base=opened)
    rows = layer_norms(patch, opened)
    assert [row["site"] for row in rows] == [f"model.layers.{n}.self_attn.q_proj.weight" for n in range(4)]
    assert all(row["relative"] for row in rows)
    assert portability(patch, opened, opened).verdict == "identical"
    assert to_kind(patch, tmp_path / "lora", "lora", opened, "x/base").as_json()["is_exact"]
    again = patches.read(LocalFolder(tmp_path / "lora"), base=opened)
    assert again.layer_ranges == ((0, 2), (0, 2))
    with pytest.raises(NotRepresentable, match="repeats layers"):
        to_dense(patch, tmp_path / "dense", opened)
