"""Native patches and full models on every architecture, against their formulas in float64."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapterhub.merging import convert, native, patches
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import NotRepresentable
from tests.merging import tiny
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DENSE_ON, DTYPES, check_dense, check_lora, fold, record, roundings
from tests.merging.native_terms import MAKERS, SHARED

pytestmark = pytest.mark.slow

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@every_dtype
@every_architecture
@pytest.mark.parametrize("kind", MAKERS)
def test_native_patches_fold_to_their_formula(kind: str, name: str, dtype: str, tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES[name].make(dtype=DTYPES[dtype]), tmp_path / "base")
    before = weights(base)
    expected = {site: W.double() for site, W in before.items()}
    sites: dict[str, native.StoredTerm] = {}
    for number, site in enumerate(one for one in before if before[one].dim() == 2):
        sites[site], expected[site] = MAKERS[kind](before[site], 10 * number)
    shared = SHARED if kind == "lowrank_shared" else {}
    native.write_patch(tmp_path / "patch", sites=sites, base={"repo_id": "tiny/base"}, shared=shared)
    error = roundings(weights(fold(base, tmp_path / "patch", tmp_path / "out")), expected, DTYPES[dtype])
    record(kind, name, dtype, "formula, float64", error)
    assert error <= 1.0
    if name in DENSE_ON:
        check_dense(kind, name, dtype, base, tmp_path / "patch", expected, tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if patches.kinds()[kind].has_factors])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")
def test_native_patches_of_low_rank_become_loras(kind: str, name: str, tmp_path: Path) -> None:
    """On embeddings too, and on gpt2's Conv1D, where the native format has rows as they are stored."""
    architecture = ARCHITECTURES[name]
    base = tiny.saved(architecture.make(), tmp_path / "base")
    before = weights(base)
    expected = {site: W.double() for site, W in architecture.make().state_dict().items()}
    sites: dict[str, native.StoredTerm] = {}
    for number, site in enumerate(
        one for one in before if before[one].dim() == 2 and (name == "llama" or ".h." in one)
    ):
        sites[site], expected[site] = MAKERS[kind](before[site], 10 * number)
    shared = SHARED if kind == "lowrank_shared" else {}
    native.write_patch(tmp_path / "patch", sites=sites, base={"repo_id": "tiny/base"}, shared=shared)
    check_lora(kind, architecture, base, tmp_path / "patch", expected, tmp_path)
    with pytest.raises(NotRepresentable, match=r"is the base's to say: name it with --base"):
        convert.to_kind(patches.read(LocalFolder(tmp_path / "patch")), tmp_path / "no", "lora", None, "")


@every_dtype
@every_architecture
def test_a_sum_folds_to_its_formula(name: str, dtype: str, tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES[name].make(dtype=DTYPES[dtype]), tmp_path / "base")
    before = weights(base)
    expected = {site: W.double() for site, W in before.items()}
    sites: dict[str, list[native.StoredTerm]] = {}
    for number, site in enumerate(one for one in before if before[one].dim() == 2):
        W = before[site]
        made = [MAKERS[kind](W, 10 * number) for kind in ("sparse", "mask", "signs", "lowrank")]
        sites[site] = [term for term, _ in made]
        expected[site] = W.double() + sum(value - W.double() for _, value in made)
    native.write_patch(tmp_path / "patch", sites=sites, base={"repo_id": "tiny/base"})
    error = roundings(weights(fold(base, tmp_path / "patch", tmp_path / "out")), expected, DTYPES[dtype])
    record("sum", name, dtype, "formula, float64", error)
    assert error <= 1.0
    if name in DENSE_ON:
        check_dense("sum", name, dtype, base, tmp_path / "patch", expected, tmp_path)


@every_dtype
@every_architecture
def test_a_full_model_stands_for_its_difference_from_the_base(name: str, dtype: str, tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES[name].make(dtype=DTYPES[dtype]), tmp_path / "base")
    tuned = tiny.saved(ARCHITECTURES[name].make(seed=1, dtype=DTYPES[dtype]), tmp_path / "tuned")
    before, there = weights(base), weights(tuned)
    expected = {
        site: W.double() + 0.25 * (there[site].double() - W.double()) if W.is_floating_point() else W
        for site, W in before.items()
    }
    found = weights(fold(base, tuned, tmp_path / "out", text="base + 0.25*a"))
    error = roundings(found, expected, DTYPES[dtype])
    record("model", name, dtype, "formula, float64", error)
    assert error <= 1.0
    if name in DENSE_ON:
        check_dense("model", name, dtype, base, tuned, {site: W.double() for site, W in there.items()}, tmp_path)
