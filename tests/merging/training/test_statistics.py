"""Statistics of a real model on data, and the merges that take them, against the papers' formulas in float64."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.errors import InvalidParameter, InvalidPatch, NotFoldable
from adapterhub.merging.ops.grams import symmetric
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.training.statistics import Statistics
from tests.merging import tiny
from tests.merging.exactness.compare import DTYPES, record, roundings
from tests.merging.methods.tuned import QUICK, make

State = dict[str, torch.Tensor]
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "mistral": ["q_proj", "v_proj", "down_proj"],
    "qwen": ["q_proj", "v_proj", "down_proj"],
}
ALPHA = 0.9


def batches(seed: int) -> list[dict[str, torch.Tensor]]:
    """Two batches of four rows, the second with padding."""
    tokens = torch.randint(0, 32, (2, 4, 10), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(4, 10, dtype=torch.long)
    mask[1, 6:] = 0
    return [{"input_ids": tokens[0]}, {"input_ids": tokens[1], "attention_mask": mask}]


def samples(seed: int) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(0, 32, (3, 1, 8), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": one, "labels": one} for one in tokens]


def fresh(name: str) -> Any:
    return make(name, 0, torch.float32)


def prepared(name: str, root: Path) -> dict[str, Path]:
    """A base and two LoRAs of it, each with the statistics of its own data beside it."""
    made = {"base": tiny.saved(fresh(name), root / "base")}
    for seed, one in enumerate(("one", "two"), 1):
        made[one] = root / one
        more: dict[str, Any] = {"fan_in_fan_out": True} if name == "gpt2" else {}
        adapted: Any = tiny.adapter(fresh(name), made[one], seed=seed, target_modules=TARGETS[name], **more)
        statistics = Statistics(adapted)
        statistics.collect_grams(batches(seed))
        statistics.collect_fisher(samples(seed))
        statistics.write(made[one])
    return made


@pytest.fixture(
    scope="module", params=[*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in ("mistral", "qwen"))]
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Path]]:
    return request.param, prepared(request.param, tmp_path_factory.mktemp(request.param))


def planned(text: str, made: dict[str, Path], dtype: str | None = None) -> Any:
    recipe = parse(text)
    inputs = {
        ref: Input(
            f"{ref.name}@{'0' * 40}", LocalFolder(made[ref.name]), kind="model" if ref.name == "base" else "lora"
        )
        for ref in recipe.references()
    }
    return plan(recipe, inputs, memory_bytes=1 << 30, dtype=dtype)


def merged(text: str, made: dict[str, Path], out: Path, dtype: str | None = None) -> State:
    run(planned(text, made, dtype), out)
    return load_file(out / "model.safetensors")


def tuned(name: str, made: dict[str, Path], one: str) -> Any:
    """The model with one LoRA in its weights, in float64."""
    return PeftModel.from_pretrained(fresh(name), str(made[one])).double().merge_and_unload().requires_grad_(True)


def inputs_of(model: Any, layer: str, seed: int) -> np.ndarray[Any, Any]:
    """What goes into a layer, (samples, n), padding left out."""
    rows: list[torch.Tensor] = []
    for batch in batches(seed):
        kept = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, x, kept=kept: rows.append(x[0][kept]))
        with torch.no_grad():
            model.eval()(**batch)
        hook.remove()
    return torch.cat(rows).numpy()


def test_grams_are_those_of_the_inputs_and_layers_that_share_one_store_it_once(
    made: tuple[str, dict[str, Path]],
) -> None:
    name, folders = made
    found = load_file(folders["one"] / "statistics.safetensors")
    layer = "transformer.h.1.mlp.c_fc" if name == "gpt2" else "model.layers.1.self_attn.q_proj"
    x = inputs_of(tuned(name, folders, "one"), layer, 1)
    np.testing.assert_allclose(
        symmetric(found[f"{layer}.weight::gram"]).numpy(), x.T @ x / len(x), rtol=1e-4, atol=1e-5
    )
    if name != "gpt2":
        assert f"{layer.replace('q_proj', 'k_proj')}.weight::gram" not in found
        with safe_open(folders["one"] / "statistics.safetensors", "pt") as file:
            assert f'"{layer.replace("q_proj", "v_proj")}.weight": "{layer}.weight"' in file.metadata()["inputs"]


def test_fisher_is_the_mean_of_squared_gradients(made: tuple[str, dict[str, Path]]) -> None:
    name, folders = made
    found = load_file(folders["two"] / "statistics.safetensors")
    model = tuned(name, folders, "two").eval()
    for one in samples(2):
        model(**one).loss.backward()
        for parameter in model.parameters():
            parameter.mean_square = getattr(parameter, "mean_square", 0) + parameter.grad**2 / 3
            parameter.grad = None
    checked = 0
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(found[f"{key}::fisher"].double(), parameter.mean_square, rtol=1e-3, atol=1e-9)
        checked += 1
    assert checked > 10


def test_regmean_solves_the_paper_s_regression_on_whole_weights(
    made: tuple[str, dict[str, Path]], tmp_path: Path
) -> None:
    name, folders = made
    found = merged(f"regmean(base; one, 0.5*two, alpha={ALPHA})", folders, tmp_path / "out")
    models = {one: tuned(name, folders, one) for one in ("one", "two")}
    means = {key: (models["one"].state_dict()[key] + 0.5 * models["two"].state_dict()[key]) / 1.5 for key in found}
    layers = [key for key in means if any(f"{one}.weight" in key for one in TARGETS[name])]
    assert len(layers) >= 4
    carried = {one: load_file(folders[one] / "statistics.safetensors") for one in models}
    sources = {one: inputs_in(folders[one]) for one in models}

    def stored(one: str, key: str) -> Any:
        return symmetric(carried[one][f"{sources[one][key]}::gram"]).numpy()

    def seen(one: str, key: str) -> Any:
        x = inputs_of(models[one], key.removesuffix(".weight"), {"one": 1, "two": 2}[one])
        return x.T @ x / len(x)

    exact = {
        key: solved(key, models, stored, is_turned=name == "gpt2") if key in layers else means[key] for key in found
    }
    for dtype in DTYPES:
        stored_as = merged(f"regmean(base; one, 0.5*two, alpha={ALPHA})", folders, tmp_path / dtype, dtype)
        error = roundings(stored_as, exact, DTYPES[dtype])
        record("regmean", name, dtype, "regression on whole weights, float64", error, "method")
        assert error <= 1.0
    for key in layers:  # the inverse multiplies the roundings of a float32 model's inputs
        expected = solved(key, models, seen, is_turned=name == "gpt2")
        assert float((found[key] - expected).abs().max()) < 2e-5


def inputs_in(folder: Path) -> dict[str, str]:
    """Whose Gram each parameter has."""
    with safe_open(folder / "statistics.safetensors", "pt") as file:
        found: dict[str, str] = json.loads(file.metadata()["inputs"])
        return found


def solved(key: str, models: dict[str, Any], gram_of: Any, *, is_turned: bool) -> torch.Tensor:
    """(G1 + G2/2)^-1 (G1 W1' + G2 W2'/2), off-diagonals damped, of weights stored (out, in) or turned."""
    above, below = 0.0, 0.0
    for one, weight in (("one", 1.0), ("two", 0.5)):
        gram = weight * gram_of(one, key)
        gram = ALPHA * gram + (1 - ALPHA) * np.diag(np.diag(gram))
        W = models[one].state_dict()[key].numpy()
        above, below = above + gram @ (W if is_turned else W.T), below + gram
    found = torch.from_numpy(np.linalg.solve(below, above))
    return found if is_turned else found.T


def test_fisher_is_the_paper_s_mean_of_whole_weights(made: tuple[str, dict[str, Path]], tmp_path: Path) -> None:
    name, folders = made
    text = "fisher(base; one, 0.5*two, floor=0.001, normalize=false)"
    found = merged(text, folders, tmp_path / "out")
    models = {one: tuned(name, folders, one).state_dict() for one in ("one", "two")}
    F = {one: load_file(folders[one] / "statistics.safetensors") for one in models}
    expected = {}
    for key in found:
        one, two = (F[each][f"{key}::fisher"].double() + 0.001 for each in models)
        expected[key] = (one * models["one"][key] + 0.5 * two * models["two"][key]) / (one + 0.5 * two)
    for dtype in DTYPES:
        error = roundings(merged(text, folders, tmp_path / dtype, dtype), expected, DTYPES[dtype])
        record("fisher", name, dtype, "mean of whole weights, float64", error, "method")
        assert error <= 1.0


def test_the_file_beside_a_patch_changes_neither_what_it_is_nor_its_digest(made: tuple[str, dict[str, Path]]) -> None:
    _, folders = made
    (facts,) = patches.inspect(LocalFolder(folders["one"]))
    assert (facts.kind, facts.problems) == ("lora", ())


def test_what_is_missing_is_refused_by_name_with_how_to_collect_it(tmp_path: Path) -> None:
    made = prepared("llama", tmp_path)
    with pytest.raises(NotFoldable, match=r"a sum of several"):
        planned("regmean(base; one + two, two)", made)
    (made["two"] / "statistics.safetensors").unlink()
    with pytest.raises(NotFoldable, match=r"two@0.*no statistics.safetensors beside it.*training.statistics"):
        planned("fisher(base; one, two)", made)
    few = Statistics(tiny.llama(), sites=lambda name: "q_proj" in name)
    few.collect_grams(batches(1))
    few.write(made["two"])
    with pytest.raises(NotFoldable, match=r"two@0.*no Gram of the inputs of model.layers.0.mlp.down_proj.weight"):
        planned("regmean(base; one, two)", made)
    other = Statistics(tiny.gpt2())
    with pytest.raises(InvalidParameter, match="nothing was collected"):
        other.write(made["two"])
    with pytest.raises(InvalidParameter, match="at least one"):
        other.collect_grams([])


def test_statistics_of_another_model_are_refused(tmp_path: Path) -> None:
    made = prepared("llama", tmp_path)
    wide: Any = tiny.llama()
    wide.model.layers[0].self_attn.q_proj.weight.data = torch.zeros(16, 16)
    wide.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(16, 30))
    wide.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(30, 16))
    wide.model.layers[0].mlp.gate_proj.weight = torch.nn.Parameter(torch.zeros(30, 16))
    statistics = Statistics(wide)
    statistics.collect_grams(batches(1))
    statistics.write(made["two"])
    with pytest.raises(InvalidPatch, match=r"model.layers.0.mlp.down_proj.weight of shape \(16, 24\)"):
        planned("regmean(base; one, two)", made)
