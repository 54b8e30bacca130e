"""Weights and parameters by layer and module, folded: against formulas written out, on every tensor."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.errors import InvalidParameter, NotFoldable, NotRepresentable
from adapterhub.merging.ops.sparsify import keep_largest
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny
from tests.merging.exactness.compare import roundings, trained

LAYERS = 3
KINDS = {"base": "model", "m": "model", "a": "lora", "b": "lora", "d": "lora", "prompt": "prompt_tuning"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Models of three layers, LoRAs a and b of different ranks on them, and a DoRA."""
    root = tmp_path_factory.mktemp("schedules")
    for seed, name in enumerate(["base", "m"]):
        tiny.saved(tiny.llama(seed=seed, layers=LAYERS), root / name)
    for seed, (name, r) in enumerate([("a", 2), ("b", 4)]):
        config = LoraConfig(r=r, lora_alpha=6, target_modules=["q_proj", "up_proj"])
        trained(tiny.llama(layers=LAYERS), config, root / name, seed=seed)
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    trained(tiny.llama(layers=LAYERS), config, root / "d")
    return {name: root / name for name in ("base", "m", "a", "b", "d")}


def planned(text: str, folders: Mapping[str, Path], **options: str) -> Plan:
    recipe = parse(text)
    inputs = {
        ref: Input(f"{ref.name}@{'0' * 40}", LocalFolder(folders[ref.name]), kind=KINDS[ref.name])
        for ref in recipe.references()
    }
    return plan(recipe, inputs, memory_bytes=1 << 30, **options)  # type: ignore[arg-type]


def merged(text: str, folders: Mapping[str, Path], out: Path) -> dict[str, torch.Tensor]:
    run(planned(text, folders), out)
    return load_file(out / "model.safetensors")


def depth(name: str) -> float:
    return int(name.split(".")[2]) / (LAYERS - 1) if ".layers." in name else 0.0


def deltas(name: str, folders: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    """What a LoRA adds to each tensor, in float64."""
    state = load_file(folders[name] / "adapter_model.safetensors")
    found = {}
    for key, A in state.items():
        if key.endswith("lora_A.weight"):
            B = state[key.replace("lora_A", "lora_B")]
            site = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            found[site] = 6 / A.shape[0] * B.double() @ A.double()
    return found


def test_a_weight_by_layer_and_module_is_what_it_is_at_each_tensor(folders: Mapping[str, Path], tmp_path: Path) -> None:
    found = merged('base + [0.2, 0.8]*a - {"self_attn": 0.5, "mlp": [0, 1, 0], "*": 9}*b', folders, tmp_path / "out")
    expected = {name: tensor.double() for name, tensor in load_file(folders["base"] / "model.safetensors").items()}
    for name, delta in deltas("a", folders).items():
        expected[name] = expected[name] + (0.2 + 0.6 * depth(name)) * delta
    for name, delta in deltas("b", folders).items():
        weight = 0.5 if "self_attn" in name else {0.0: 0.0, 0.5: 1.0, 1.0: 0.0}[depth(name)]
        expected[name] = expected[name] - weight * delta
    assert roundings(found, expected, torch.float32) <= 1.0


def test_a_model_is_averaged_by_depth_and_its_head_as_its_first_layer(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    found = merged("linear(base; [1, 0]*base, [0.5, 2]*m)", folders, tmp_path / "out")
    base, model = (load_file(folders[name] / "model.safetensors") for name in ("base", "m"))
    for name, tensor in found.items():
        u, v = 1 - depth(name), 0.5 + 1.5 * depth(name)
        expected = (u * base[name].double() + v * model[name].double()) / (u + v)
        assert roundings({name: tensor}, {name: expected}, torch.float32) <= 1.0


def test_a_methods_weights_and_parameters_are_those_of_the_tensor(folders: Mapping[str, Path], tmp_path: Path) -> None:
    text = 'ties(base; [1, 0.5]*m, a, density={"mlp": [0.2, 1], "*": 0.5}, normalize=[none, weights])'
    found = merged(text, folders, tmp_path / "out")
    base, model = (load_file(folders[name] / "model.safetensors") for name in ("base", "m"))
    added = deltas("a", folders)
    for name, tensor in found.items():
        density = 0.2 + 0.8 * depth(name) if "mlp" in name else 0.5
        weights = 1 - 0.5 * depth(name), 1.0
        trimmed = [
            keep_largest(one, density).double()
            for one in (model[name] - base[name], added.get(name, torch.zeros(base[name].shape)).float())
        ]
        wide = [weight * one for weight, one in zip(weights, trimmed, strict=True)]
        sign = torch.where(wide[0] + wide[1] >= 0, 1.0, -1.0)
        agreeing = [(one.sign() == sign).double() for one in wide]
        total = wide[0] * agreeing[0] + wide[1] * agreeing[1]
        if depth(name) == 1.0:
            shares = weights[0] * agreeing[0] + weights[1] * agreeing[1]
            total = total / torch.where(shares == 0, 1.0, shares)
        torch.testing.assert_close(tensor.double(), base[name].double() + total, rtol=1e-5, atol=1e-6)


def test_a_lora_of_weights_by_layer_is_that_sum(folders: Mapping[str, Path], tmp_path: Path) -> None:
    text = 'base + [0.2, 0.8]*a + linear([0, 1]*b, {"mlp": 0.2, "*": 1}*a) + 0.5*b'
    expected = merged(text, folders, tmp_path / "merged")
    run(planned(text, folders, as_kind="lora"), tmp_path / "lora")
    model = tiny.llama(layers=LAYERS)
    adapted = PeftModel.from_pretrained(model, str(tmp_path / "lora"))
    found = adapted.double().merge_and_unload().state_dict()
    torch.testing.assert_close({name: found[name] for name in expected}, {k: v.double() for k, v in expected.items()})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base + [0.2, 0.8]*d", "a dora term has no exact low-rank form"),
        ("base + [0, 1]*m", "what is added here is no term of a patch"),
        ("base + [0, 1]*ties(a, b)", "ties is no weighted sum of patches"),
    ],
)
def test_what_is_no_lora_with_weights_by_layer_is_refused(text: str, says: str, folders: Mapping[str, Path]) -> None:
    with pytest.raises(NotRepresentable, match=says):
        planned(text, folders, as_kind="lora")


def test_weights_that_cancel_in_one_layer_are_refused_before_work(folders: Mapping[str, Path]) -> None:
    with pytest.raises(InvalidParameter, match=r"layers\.2\..*: linear: the weights .* add up to 0"):
        planned("linear(base; [1, -1]*a, b)", folders)


def test_parameters_that_do_not_go_together_in_one_layer_are_refused_before_work(folders: Mapping[str, Path]) -> None:
    with pytest.raises(InvalidParameter, match="della"):
        planned("della(base; a, b, density=[0.5, 0.95])", folders)


def test_a_run_time_patch_takes_one_number(folders: Mapping[str, Path], tmp_path: Path) -> None:
    from peft import PromptTuningConfig

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    trained(tiny.llama(layers=LAYERS), config, tmp_path / "prompt")
    recipe = parse("base + [0, 1]*prompt")
    given = {**folders, "prompt": tmp_path / "prompt"}
    inputs = {ref: Input(ref.name, LocalFolder(given[ref.name]), kind=KINDS[ref.name]) for ref in recipe.references()}
    with pytest.raises(NotFoldable, match=r"weight is one number; found \[0, 1\]"):
        plan(recipe, inputs, memory_bytes=1 << 30, attaches=True)
