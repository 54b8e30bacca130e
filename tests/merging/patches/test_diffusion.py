"""LoRAs of diffusion models against diffusers itself: what it loads from the same file and fuses, in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from adapterhub.merging import convert, patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidPatch, NotRepresentable, ShapeMismatch, UnknownSite
from tests.merging.build import random
from tests.merging.exactness.compare import DTYPES, check_dense, fold, record, roundings

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV, PROJ = "down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.proj_in"
MODULES = [Q, OUT, CONV, PROJ]
COMPONENTS = ("unet", "text_encoder")
WEIGHTS = "pytorch_lora_weights.safetensors"


def unet(dtype: torch.dtype = torch.float32, width: int = 8) -> UNet2DConditionModel:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return model.to(dtype)


def text_encoder() -> CLIPTextModel:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return CLIPTextModel(CLIPTextConfig(vocab_size=32, **sizes))


def kohya(file: Path, *, dora: bool = False, alpha: float | None = None, **change: torch.Tensor | None) -> Path:
    """A file as sd-scripts writes it: one alpha, else different ones and one missing; a text encoder's module too."""
    weights, tensors = unet().state_dict(), {}
    for number, module in enumerate(MODULES):
        W = weights[f"{module}.weight"]
        name = "lora_unet_" + module.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = random(3, *W.shape[1:], seed=number) * 0.2
        tensors[f"{name}.lora_up.weight"] = random(W.shape[0], 3, *(1 for _ in W.shape[2:]), seed=number + 9) * 0.2
        if alpha or module != OUT:
            tensors[f"{name}.alpha"] = torch.tensor(alpha or 1.5 + number)
        if dora:
            tensors[f"{name}.dora_scale"] = random(W.shape[0], *(1 for _ in W.shape[1:]), seed=number + 20).abs()
    if not dora:
        name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        tensors |= {f"{name}.lora_down.weight": random(3, 16), f"{name}.lora_up.weight": random(16, 3, seed=1)}
    file.parent.mkdir(exist_ok=True)
    save_file({name: one for name, one in (tensors | change).items() if one is not None}, file)
    return file


def fused(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The U-Net's weights after diffusers loaded and fused the patch, in float64."""
    state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(folder), weight_name=WEIGHTS, unet_config=None, return_lora_metadata=True
    )
    model = UNet2DConditionModel.from_pretrained(base).double()
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, alphas, model, adapter_name="a", metadata=metadata)
    model.double()
    model.fuse_lora()
    model.unload_lora()
    return dict(model.state_dict())


def by_formula(base: Path, file: Path) -> dict[str, torch.Tensor]:
    """alpha / r · up @ down of a kohya file on the weights, normed to dora_scale where it has one, in float64."""
    weights = {name: W.double() for name, W in load_file(base / "diffusion_pytorch_model.safetensors").items()}
    tensors = {name: one.double() for name, one in load_file(file).items()}
    for module in MODULES:
        name, W = "lora_unet_" + module.replace(".", "_"), weights[f"{module}.weight"]
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        alpha = tensors.get(f"{name}.alpha", torch.tensor(float(len(down))))
        W = W + alpha / len(down) * (up.flatten(1) @ down.flatten(1)).view(W.shape)
        if f"{name}.dora_scale" in tensors:
            norms = W.flatten(1).norm(dim=1).view(-1, *(1 for _ in W.shape[1:]))
            W = tensors[f"{name}.dora_scale"] * W / norms
        weights[f"{module}.weight"] = W
    return weights


def check(kind: str, patch: Path, dtype: str, tmp_path: Path, *, formula: bool = False) -> None:
    base = tmp_path / "unet"
    unet(DTYPES[dtype]).save_pretrained(base)
    found = dict(UNet2DConditionModel.from_pretrained(fold(base, patch, tmp_path / "out")).state_dict())
    expected = by_formula(base, patch / WEIGHTS) if formula else fused(base, patch)
    before = load_file(base / "diffusion_pytorch_model.safetensors")
    assert all(not torch.equal(before[f"{one}.weight"], found[f"{one}.weight"]) for one in MODULES)
    error = roundings(found, expected, DTYPES[dtype])
    record(kind, "unet", dtype, "sd-scripts' formula, float64" if formula else "diffusers fuse_lora, float64", error)
    assert error <= 1.0
    check_dense(kind, "unet", dtype, base, patch, expected, tmp_path)
    if dtype == "float32":
        lora = converted(patch, tmp_path / "lora", "lora", base)
        loaded: Any = PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained(base), str(lora))
        error = roundings(loaded.double().merge_and_unload().state_dict(), expected, torch.float32)
        record(kind, "unet", dtype, "the kind's own oracle, float64, loaded by peft", error, "as a LoRA")
        assert error <= 1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_kohya_folds_by_its_formula(dora: bool, dtype: str, tmp_path: Path) -> None:
    kohya(tmp_path / "patch" / WEIGHTS, dora=dora)
    check("kohya (dora)" if dora else "kohya", tmp_path / "patch", dtype, tmp_path, formula=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kohya_folds_as_diffusers_fuses(dtype: str, tmp_path: Path) -> None:
    """With one alpha: diffusers 0.42 drops alphas of attention that differ, as its alpha_pattern names no module."""
    kohya(tmp_path / "patch" / WEIGHTS, alpha=1.5)
    check("kohya", tmp_path / "patch", dtype, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "config", [{"alpha_pattern": {Q: 9}, "rank_pattern": {CONV: 2}}, {"use_rslora": True}, {"use_dora": True}], ids=str
)
@pytest.mark.parametrize("is_told", [True, False], ids=["metadata", "bare"])
def test_diffusers_folds_as_it_fuses(is_told: bool, config: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    adapted = unet()
    adapted.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=MODULES, init_lora_weights=False, **config))
    layers = get_peft_model_state_dict(adapted)
    metadata = _collate_lora_metadata({"unet": adapted}) if is_told else {}
    StableDiffusionLoraLoaderMixin.save_lora_weights(tmp_path / "patch", unet_lora_layers=layers, **metadata)
    check("diffusers" + (" (dora)" if "use_dora" in config else ""), tmp_path / "patch", dtype, tmp_path)


def test_names_of_before_peft_are_understood(tmp_path: Path) -> None:
    processor = OUT.removesuffix("to_out.0") + "processor.to_out_lora"
    down, up = random(3, 16), random(16, 3, seed=1)
    tensors = {f"unet.{processor}.down.weight": down, f"unet.{processor}.up.weight": up}
    save_file(tensors, tmp_path / WEIGHTS)
    unet().save_pretrained(tmp_path / "unet")
    (term,) = patches.read(LocalFolder(tmp_path), base=Checkpoint.open(LocalFolder(tmp_path / "unet"))).terms
    assert (term.site, term.scale) == (f"{OUT}.weight", 1.0)


def test_each_component_gets_its_own_modules(tmp_path: Path) -> None:
    """Of a diffusers folder the sub-folder of one component is the base, and the rest of the file is for others."""
    kohya(tmp_path / "patch" / "a.safetensors")
    model = LocalFolder(tmp_path / "model")
    unet().save_pretrained(model.root / "unet")
    text_encoder().save_pretrained(model.root / "text_encoder")
    folder = LocalFolder(tmp_path / "patch")
    sites = {one: {t.site for t in patches.read(folder, base=Checkpoint.open(model, one)).terms} for one in COMPONENTS}
    assert sites["unet"] == {f"{module}.weight" for module in MODULES}
    assert len(sites["text_encoder"]) == 1
    assert next(iter(sites["text_encoder"])).endswith("encoder.layers.0.self_attn.q_proj.weight")
    assert len(patches.read(folder).terms) == len(MODULES) + 1


def test_another_base_is_refused(tmp_path: Path) -> None:
    kohya(tmp_path / "patch" / "a.safetensors")
    unet(width=16).save_pretrained(tmp_path / "wide")
    folder = LocalFolder(tmp_path / "patch")
    with pytest.raises(ShapeMismatch):
        patches.read(folder, base=Checkpoint.open(LocalFolder(tmp_path / "wide")))
    save_file({"other.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(UnknownSite):
        patches.read(folder, base=Checkpoint.open(LocalFolder(tmp_path), name="other"))


NAME = "lora_unet_" + Q.replace(".", "_")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{NAME}.lora_up.weight": None}, "has only A"),
        ({f"{NAME}.lora_up.weight": torch.zeros(16, 4)}, "their ranks differ"),
        ({f"{NAME}.lora_up.weight": torch.zeros(16, 3, 1, 1)}, "both of two or both of four"),
        ({f"{NAME}.lora_down.weight": torch.zeros(3, 16, dtype=torch.int32)}, "floats are expected"),
        ({f"{NAME}.alpha": torch.tensor(-1.0)}, "one number above 0"),
        ({f"{NAME}.alpha": torch.ones(2)}, "one number above 0"),
        ({f"{NAME}.dora_scale": torch.ones(3)}, "normed over outputs"),
        ({f"{NAME}.lora_mid.weight": torch.ones(3, 3)}, "lora_mid is (3, 3)"),
        ({f"{NAME}.oft_blocks": torch.ones(3, 3)}, "of LyCORIS, which is shown"),
        ({f"{NAME}.hada_w1_a": torch.ones(16, 3)}, "of no one of LoHa, LoKr"),
        ({"lora_unet_x.hada_w1_a": torch.ones(16, 3)}, "and no w1b, w2a, w2b"),
        ({"lora_unet_x.lokr_w1": torch.ones(2, 2)}, "one form is expected"),
        (
            {f"lora_unet_x.hada_w{n}": torch.ones(2, 3) for n in ("1_a", "1_b", "2_a", "2_b")},
            "their ranks differ",
        ),
        ({"lora_unet_x.alpha": torch.tensor(1.0)}, "an alpha and no factors"),
        ({"stray": torch.ones(3)}, "no part of a LoRA"),
    ],
    ids=str,
)
def test_contradictions_of_kohya_files_are_problems(change: Any, says: str, tmp_path: Path) -> None:
    folder = LocalFolder(kohya(tmp_path / "p" / "a.safetensors", **change).parent)
    (facts,) = patches.inspect(folder)
    assert facts.kind == "kohya"
    assert says in " ".join(facts.problems)
    with pytest.raises(InvalidPatch):
        patches.read(folder)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no object"),
        (json.dumps({"unet.lora_alpha": -1}), "lora_alpha is -1"),
        (json.dumps({"unet.alpha_pattern": 3}), "alpha_pattern"),
    ],
)
def test_metadata_that_says_nonsense_is_a_problem(metadata: str, says: str, tmp_path: Path) -> None:
    tensors = {f"unet.{Q}.lora_A.weight": torch.ones(3, 16), f"unet.{Q}.lora_B.weight": torch.ones(16, 3)}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": metadata})
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert says in facts.problems[0]


def test_facts_tell_rank_and_components(tmp_path: Path) -> None:
    (facts,) = patches.inspect(LocalFolder(kohya(tmp_path / "p" / "a.safetensors").parent))
    assert (facts.kind, facts.rank_min, facts.rank_max, facts.problems) == ("kohya", 3, 3, ())
    assert facts.detail["components"] == ["text_encoder", "unet"]


def lycoris_modules() -> dict[str, tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """By module of the U-Net: LyCORIS's tensors and its delta in float64. Source: LyCORIS `functional/*.py`."""

    def c(*shape: int, seed: int) -> torch.Tensor:
        return random(*shape, seed=seed) * 0.3

    made: dict[str, Any] = {}
    loha = {"w1_a": c(16, 3, seed=1), "w1_b": c(3, 16, seed=2), "w2_a": c(16, 3, seed=3), "w2_b": c(3, 16, seed=4)}
    w = {name: one.double() for name, one in loha.items()}
    delta = (w["w1_a"] @ w["w1_b"]) * (w["w2_a"] @ w["w2_b"])
    made[Q] = {f"hada_{k}": v for k, v in loha.items()} | {"alpha": torch.tensor(1.5)}, delta * 1.5 / 3
    lokr = {"w1": c(4, 2, seed=5), "w2_a": c(4, 2, seed=6), "w2_b": c(2, 8, seed=7)}
    w = {name: one.double() for name, one in lokr.items()}
    delta = torch.kron(w["w1"], w["w2_a"] @ w["w2_b"])
    made[OUT] = {f"lokr_{k}": v for k, v in lokr.items()} | {"alpha": torch.tensor(5.0)}, delta * 5 / 2
    cores = {f"t{n}": c(2, 2, 3, 3, seed=n) for n in (8, 9)}
    tucker = {"w1_a": c(2, 8, seed=10), "w1_b": c(2, 8, seed=11), "w2_a": c(2, 8, seed=12), "w2_b": c(2, 8, seed=13)}
    w = {name: one.double() for name, one in (tucker | cores).items()}
    first, second = (torch.einsum("ijkl,jr,ip->prkl", w[f"t{n + 7}"], w[f"w{n}_b"], w[f"w{n}_a"]) for n in (1, 2))
    named = {f"hada_{k}": v for k, v in tucker.items()} | {"hada_t1": cores["t8"], "hada_t2": cores["t9"]}
    made[CONV] = named | {"alpha": torch.tensor(2.0)}, first * second
    diff = c(16, 16, 1, 1, seed=14)
    made[PROJ] = {"diff": diff}, diff.double()
    return made


KEY = Q.replace("to_q", "to_k")
LOCON, WHOLE = "down_blocks.0.resnets.0.conv2", "down_blocks.1.resnets.0.conv2"


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lycoris_saves_folds_by_its_formulas(dtype: str, tmp_path: Path) -> None:
    made: dict[str, Any] = lycoris_modules()
    up, mid, down = random(8, 2, 1, 1) * 0.3, random(2, 2, 3, 3, seed=1), random(2, 8, 1, 1, seed=2) * 0.3
    delta = torch.einsum("oa,abkl,bi->oikl", up[:, :, 0, 0].double(), mid.double(), down[:, :, 0, 0].double())
    fields = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    made[LOCON] = fields, delta / 2
    w1, w2 = random(4, 4, seed=3) * 0.3, random(4, 4, 3, 3, seed=4) * 0.3
    kron = torch.kron(w1.double()[:, :, None, None], w2.double())
    factors = {"w1_a": (2, 1), "w1_b": (1, 2), "w2_a": (8, 1), "w2_b": (1, 8)}
    some = {f"lokr_{name}": random(*shape, seed=20) for name, shape in factors.items()}
    one, two, three, four = (one.double() for one in some.values())
    made[KEY] = some | {"alpha": torch.tensor(0.5)}, 0.5 * torch.kron(one @ two, three @ four)
    made[WHOLE] = {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(7.0)}, kron  # alpha counts for factors alone
    tensors = {
        f"lora_unet_{module.replace('.', '_')}.{field}": one.contiguous()
        for module, (fields, _) in made.items()
        for field, one in fields.items()
    }
    (tmp_path / "patch").mkdir()
    save_file(tensors, tmp_path / "patch" / "loha.safetensors")
    unet(DTYPES[dtype]).save_pretrained(tmp_path / "unet")
    weights = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    expected = {name: W.double() for name, W in weights.items()}
    for module, (_, delta) in made.items():
        W = expected[f"{module}.weight"]
        expected[f"{module}.weight"] = W + delta.reshape(W.shape)
    (facts,) = patches.inspect(LocalFolder(tmp_path / "patch"))
    assert (facts.kind, facts.problems) == ("kohya", ())
    merged = fold(tmp_path / "unet", tmp_path / "patch", tmp_path / "out")
    found = dict(UNet2DConditionModel.from_pretrained(merged).state_dict())
    error = roundings(found, expected, DTYPES[dtype])
    record("kohya (lycoris)", "unet", dtype, "LyCORIS's formulas, float64", error)
    assert error <= 1.0


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_a_kohya_file_becomes_a_lora_that_peft_loads(alpha: float | None, tmp_path: Path) -> None:
    base, patch = tmp_path / "unet", tmp_path / "patch"
    unet().save_pretrained(base)
    file = kohya(patch / WEIGHTS, alpha=alpha)
    lora = fold(base, patch, tmp_path / "lora", as_kind="lora")
    loaded: Any = PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained(base), str(lora))
    found = loaded.double().merge_and_unload().state_dict()
    error = roundings(found, by_formula(base, file), torch.float32)
    record("kohya", "unet", "float32", "float64 formula, loaded by peft", error, "as a LoRA")
    assert error <= 1.0


def converted(source: Path, out: Path, kind: str, base: Path) -> Path:
    here = Checkpoint.open(LocalFolder(base), name=str(base))
    conversion = convert.to_kind(convert.read_patch(LocalFolder(source), "", here), out, kind, here, "tiny/unet")
    assert conversion.as_json()["is_exact"]
    return out


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("by", [("diffusers", "kohya"), ("lora", "kohya"), ("diffusers", "lora", "kohya")], ids=str)
def test_a_kohya_file_comes_back_bit_for_bit(by: tuple[str, ...], dora: bool, tmp_path: Path) -> None:
    """With an alpha of its own on each module; of what it had none for, alpha is the rank."""
    unet().save_pretrained(tmp_path / "unet")
    none = {f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{end}.weight": None for end in ("down", "up")}
    before = load_file(kohya(tmp_path / "first" / WEIGHTS, dora=dora, **none))
    folder = tmp_path / "first"
    for kind in by:
        folder = converted(folder, tmp_path / f"{kind}-{len(by)}", kind, tmp_path / "unet")
    after = load_file(folder / WEIGHTS)
    assert after.pop("lora_unet_" + OUT.replace(".", "_") + ".alpha") == 3
    assert after.keys() == before.keys()
    assert all(after[key].shape == before[key].shape and torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("config", [{"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {CONV: 9}}], ids=str)
@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
def test_a_lora_of_peft_is_written_so_that_it_fuses_alike(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=MODULES, init_lora_weights=False, **config)
    adapted: Any = get_peft_model(unet(), lora)
    adapted.save_pretrained(str(tmp_path / "peft"))
    unet().save_pretrained(tmp_path / "unet")
    written = converted(tmp_path / "peft", tmp_path / kind, kind, tmp_path / "unet")
    is_ours = kind == "kohya"  # whose DoRA and differing alphas diffusers 0.42 reads wrong or not at all
    found = by_formula(tmp_path / "unet", written / WEIGHTS) if is_ours else fused(tmp_path / "unet", written)
    error = roundings(found, adapted.double().merge_and_unload().state_dict(), torch.float32)
    oracle = "sd-scripts' formula and peft, float64" if is_ours else "diffusers fuse_lora and peft, float64"
    record(kind + (" (dora)" if "use_dora" in config else ""), "unet", "float32", oracle, error, "written")
    assert error <= 1.0


@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
def test_a_text_encoders_lora_has_the_names_that_diffusers_reads(kind: str, tmp_path: Path) -> None:
    text_encoder().save_pretrained(tmp_path / "model" / "text_encoder")
    kohya(tmp_path / "patch" / "a.safetensors")
    written = converted(tmp_path / "patch", tmp_path / "out", kind, tmp_path / "model" / "text_encoder")
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    name = "lora_te_" + layer.replace(".", "_") if kind == "kohya" else f"text_encoder.{layer}"
    assert {key for key in load_file(written / WEIGHTS) if key.startswith(name + ".")} == set(
        load_file(written / WEIGHTS)
    )


def test_what_such_files_cannot_say_is_refused(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path / "unet")
    kohya(tmp_path / "patch" / WEIGHTS)
    found = patches.read(LocalFolder(tmp_path / "patch"))
    for kind in ("kohya", "diffusers"):
        with pytest.raises(NotRepresentable, match="name it with --base"):
            convert.to_kind(found, tmp_path / "out", kind, None, "")
    base = Checkpoint.open(LocalFolder(tmp_path / "unet"), name="base")
    patch = patches.read(LocalFolder(tmp_path / "patch"), base=base)
    other = replace(base, config={**base.config, "_class_name": "AutoencoderKL"})
    with pytest.raises(NotRepresentable, match="is AutoencoderKL, no component of a diffusion model"):
        convert.to_kind(patch, tmp_path / "out", "kohya", other, "")
    prior = replace(base, name="model/prior")
    with pytest.raises(NotRepresentable, match="no file names the component prior"):
        convert.to_kind(patch, tmp_path / "out", "kohya", prior, "")
    assert not (tmp_path / "out").exists()
