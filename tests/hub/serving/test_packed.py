"""Bases of 4 and 8 bits that stay so in memory: against the dequantised model, peft on it, and bitsandbytes itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving import packed
from adapterhub.hub.serving.mixture import Adapter
from adapterhub.hub.serving.packed import PackedLinear
from adapterhub.hub.serving.protocol import MERGED, RUN_TIME, VariantSpec
from adapterhub.hub.serving.resident import Variant
from adapterhub.hub.serving.residents import Lease, Residents
from adapterhub.merging import native
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.effects import read
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.quantised import Coded, dequantised
from tests.hub.serving import models
from tests.hub.serving.passes import by_transformers, greedy, texts
from tests.merging.build import handle

FORMATS = ("nf4", "nf4 twice", "fp4", "int8", "fp8", "fp8 blocks")
WIDTH, INNER = 64, 192
IDS = torch.arange(40)[None]


def plain(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=models.BEGIN,
        eos_token_id=models.END,
        initializer_range=0.2,
        attention_bias=True,
    )
    made: Any = transformers.LlamaForCausalLM(config)
    made.to(dtype).save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    return folder


def quantised(kind: str, folder: Path) -> Path:
    """The plain model as bitsandbytes through transformers saves it, or in FP8 as DeepSeek's files are."""
    source = plain(folder / "plain")
    out = folder / "quantised"
    if kind.startswith("fp8"):
        return eight_bit_floats(source, out, in_blocks=kind == "fp8 blocks")
    options: dict[str, Any] = {"load_in_8bit": True}
    if kind != "int8":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": kind.partition(" ")[0],
            "bnb_4bit_use_double_quant": kind.endswith("twice"),
            "bnb_4bit_compute_dtype": torch.bfloat16,
        }
    config: Any = transformers.BitsAndBytesConfig
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(source, quantization_config=config(**options), device_map="cpu", dtype=torch.bfloat16)
    model.save_pretrained(out)
    models.tokenizer().save_pretrained(out)
    return out


def eight_bit_floats(source: Path, out: Path, *, in_blocks: bool) -> Path:
    shutil.copytree(source, out)
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if "_proj.weight" not in name:
            tensors[name] = weight
            continue
        scale = weight.float().abs().amax() / 448
        tensors[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
        grid = (-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
        # blocks of different scales, or those of one would pass for those of another
        steps = torch.arange(1.0, grid[0] * grid[1] + 1).reshape(grid)
        tensors[f"{name}_scale_inv"] = scale * steps if in_blocks else scale.reshape(1)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (out / "config.json").write_text(json.dumps(config))
    return out


def widened(folder: Path, out: Path) -> Path:
    """The dequantised model as an ordinary one: its numbers are those of `merging.quantised`, tested against their
    libraries in tests/merging/test_quantised.py."""
    stored = dequantised(Checkpoint.open(LocalFolder(folder)))
    out.mkdir()
    tensors = {name: read(handle).clone() for name, handle in stored.tensors.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(dict(stored.config)))
    models.tokenizer().save_pretrained(out)
    return out


def loaded(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def logits_of(lease: Lease) -> Tensor:
    if isinstance(lease.variant, Adapter):
        lease.base.apply(lease.base.mixture)
        lease.loaded.before_pass()
    else:
        lease.base.apply(lease.variant)
    model: Any = lease.base.loaded.model
    found: Tensor = model(IDS).logits[0].float()
    lease.base.apply(None)
    return found


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_packed_base_answers_as_the_dequantised_one(kind: str, tmp_path: Path, residents: Residents) -> None:
    folder = quantised(kind, tmp_path)
    lease = residents.lease(models.spec("demo/base", models.source("demo/base", folder)))
    expected = loaded(widened(folder, tmp_path / "wide"))
    with torch.no_grad():
        wanted = expected(IDS).logits[0].float()
    assert distance(logits_of(lease), wanted) < 2e-3  # the same numbers in bfloat16, summed in pieces
    layers = [module for module in lease.base.loaded.model.modules() if isinstance(module, PackedLinear)]
    assert len(layers) == 14
    assert all(layer.weight is None for layer in layers)
    bits = 4.6 if "4" in kind else 8.6
    wide = sum(layer.in_features * layer.out_features for layer in layers)
    held = sum(buffer.nbytes for layer in layers for name, buffer in layer.named_buffers() if name != "table")
    assert held * 8 / wide < bits
    assert lease.base.size_bytes < 0.8 * sum(one.nbytes for one in expected.state_dict().values())


@pytest.mark.parametrize(("kind", "share"), [("nf4", 1 / 3), ("int8", 1)])
def test_a_packed_base_answers_as_bitsandbytes_does(
    kind: str, share: float, tmp_path: Path, residents: Residents
) -> None:
    """Nearer than the unquantised model by `share`; its kernel for int8 rounds what goes into layers to 8 bits too."""
    folder = quantised(kind, tmp_path)
    lease = residents.lease(models.spec("demo/base", models.source("demo/base", folder)))
    auto: Any = transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(folder, device_map="cpu")
    with torch.no_grad():
        wanted = theirs(IDS).logits[0].float()
        unquantised = loaded(tmp_path / "plain")(IDS).logits[0].float()
    assert distance(logits_of(lease), wanted) < share * distance(unquantised, wanted)


def adapted(base: Path, folder: Path) -> Path:
    return models.lora(base, folder, seed=3, targets=("q_proj", "down_proj", "up_proj"), r=4)


def spiel(base: Path, folder: Path) -> dict[str, Tensor]:
    """A SpIEL adapter as its library saves it; and the dense deltas that it stands for."""
    config = {
        "peft_type": "SFT",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "density": 0.02,
        "num_tunable_weights": None,
        "selection_algorithm": "rigl",
        "target_modules": ["v_proj", "up_proj"],
    }
    generator = torch.Generator().manual_seed(5)
    tensors, deltas = {}, {}
    for layer in range(2):
        for path, rows in (("self_attn.v_proj", WIDTH // 2), ("mlp.up_proj", INNER)):
            count = rows * WIDTH // 50
            places = torch.randperm(rows * WIDTH, generator=generator)[:count].int()
            values = torch.randn(count, generator=generator)
            stem = f"base_model.model.model.layers.{layer}.{path}"
            tensors[f"{stem}.sft_delta.values"], tensors[f"{stem}.sft_delta.indices"] = values, places
            deltas[f"model.layers.{layer}.{path}.weight"] = (
                torch.zeros(rows * WIDTH).index_add_(0, places, values).view(rows, WIDTH)
            )
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return deltas


def specs(folder: Path, adapters: Path) -> dict[str, VariantSpec]:
    base = models.source("demo/base", folder)
    lora = models.source("demo/lora", adapters / "lora", "lora")
    sparse = models.source("demo/sparse", adapters / "sparse", "spiel")
    return {
        "base": models.spec("demo/base", base),
        "lora": models.spec("demo/base + 0.5*demo/lora", base, lora),
        "sparse": models.spec("demo/base + 2*demo/sparse", base, sparse),
        "both": models.spec("demo/base + 0.5*demo/lora + 2*demo/sparse", base, lora, sparse),
    }


def with_patches(folder: Path, adapters: Path, deltas: dict[str, Tensor], name: str) -> Any:
    """In float32 over the dequantised numbers: peft's live LoRA at half its strength, and twice the dense deltas."""
    model = loaded(folder, torch.float32)
    if name in ("sparse", "both"):
        with torch.no_grad():
            for site, delta in deltas.items():
                model.get_parameter(site).add_(delta, alpha=2)
    if name in ("lora", "both"):
        tuned: Any = peft.PeftModel.from_pretrained(model, str(adapters / "lora"))
        for module in tuned.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling = {key: value / 2 for key, value in module.scaling.items()}
        return tuned
    return model


@pytest.mark.parametrize("kind", ["nf4 twice", "int8", "fp8 blocks"])
def test_low_rank_and_sparse_patches_run_beside_packed_weights(kind: str, tmp_path: Path, residents: Residents) -> None:
    folder = quantised(kind, tmp_path)
    wide = widened(folder, tmp_path / "wide")
    adapted(tmp_path / "plain", tmp_path / "lora")
    deltas = spiel(tmp_path / "plain", tmp_path / "sparse")
    asked = specs(folder, tmp_path)
    base = residents.lease(asked["base"])
    before = logits_of(base)
    for name in ("lora", "sparse", "both"):
        lease = residents.lease(asked[name], None)
        assert isinstance(lease.variant, Adapter), name  # without being asked to
        with torch.no_grad():
            wanted = with_patches(wide, tmp_path, deltas, name)(IDS).logits[0].float()
        found = logits_of(lease)
        assert distance(found, wanted) < 0.03, name  # bfloat16 against float32
        assert distance(before, wanted) > 0.2, name
        merged = residents.lease(asked[name], MERGED)
        assert isinstance(merged.variant, Variant)
        assert distance(logits_of(merged), wanted) < 0.03, name
    assert torch.equal(logits_of(base), before)
    assert base.base.is_pristine
    assert not [
        one for one in base.base.loaded.model.modules() if isinstance(one, PackedLinear) and one.weight is not None
    ]


def test_rows_of_packed_base_and_patches_share_a_pass(
    tmp_path: Path, residents: Residents, counted: list[int], read_together: list[int]
) -> None:
    folder = eight_bit_floats(plain(tmp_path / "plain", torch.float32), tmp_path / "base", in_blocks=True)
    wide = widened(folder, tmp_path / "wide")
    adapted(tmp_path / "plain", tmp_path / "lora")
    deltas = spiel(tmp_path / "plain", tmp_path / "sparse")
    asked = specs(folder, tmp_path)
    names, prompts = ("lora", "sparse", "both", "sparse"), ("of the sea", "of the hills", "of the air", "of the sun")
    together = texts(
        [residents.lease(asked[name], RUN_TIME) for name in names], [greedy(prompt, 12) for prompt in prompts]
    )
    peers = {name: with_patches(wide, tmp_path, deltas, name) for name in names}
    assert together == [by_transformers(peers[name], prompt, 12) for name, prompt in zip(names, prompts, strict=True)]
    assert max(counted) == 4
    assert read_together == [4]


def test_sparse_patches_run_beside_an_ordinary_base_too(tmp_path: Path, residents: Residents) -> None:
    """Conv1D stores its weight the other way round."""
    base = models.gpt2(tmp_path / "base")
    site = "transformer.h.1.mlp.c_fc.weight"
    expected = loaded(base, torch.float32)
    weight = expected.get_parameter(site)
    delta = torch.where(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.02, 1.0, 0.0)
    native.write_patch(tmp_path / "sparse", sites={site.partition(".")[2]: native.sparse(delta.numpy())}, base={})
    sources = models.source("demo/base", base), models.source("demo/sparse", tmp_path / "sparse", "sparse")
    lease = residents.lease(models.spec("demo/base + demo/sparse", *sources), RUN_TIME)
    with torch.no_grad():
        weight.add_(delta)
        wanted = expected(IDS).logits[0]
    assert distance(logits_of(lease), wanted) < 1e-5


@settings(deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 150),
    block=st.sampled_from([2, 64, 128]),
    cut=st.integers(0, 10**6),
    compiled=st.booleans(),
)
def test_any_rows_of_codes_are_the_rows_of_the_whole(
    rows: int, columns: int, block: int, cut: int, compiled: bool
) -> None:
    """Blocks need not end where rows do, and the last may be short; with numba and without."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    codes = torch.randint(0, 16, (rows * columns,), generator=generator)
    scales = torch.rand(-(-rows * columns // block), generator=generator)
    table = torch.randn(16, generator=generator)
    even = torch.cat([codes, codes.new_zeros(len(codes) % 2)])
    layer = PackedLinear(torch.nn.Linear(columns, rows, bias=False))
    layer.fill(coded(rows, columns, (even[::2] << 4 | even[1::2]).to(torch.uint8), block, table, scales))
    expected = (table[codes] * scales.repeat_interleave(block)[: len(codes)]).view(rows, columns)
    start = cut % rows
    stop = start + 1 + cut % (rows - start)
    with pytest.MonkeyPatch.context() as patched:
        if not compiled:
            patched.setattr(packed, "_kernels", lambda: None)
        assert torch.equal(layer.rows(start, stop), expected[start:stop])


def coded(rows: int, columns: int, codes: Tensor, block: int, table: Tensor, scales: Tensor) -> Any:
    return Coded(
        "w", (rows, columns), "F32", handle(codes), block, lambda: table.numpy(), lambda: scales.numpy(), frozenset()
    )


def test_layers_are_widened_in_steps(tmp_path: Path, residents: Residents, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quantised("nf4", tmp_path)
    lease = residents.lease(models.spec("demo/base", models.source("demo/base", folder)))
    whole = logits_of(lease)
    monkeypatch.setattr(packed, "ROWS_AT_ONCE", 7 * WIDTH)
    assert distance(logits_of(lease), whole) < 2e-3


def test_other_formats_are_refused_by_name(tmp_path: Path, residents: Residents) -> None:
    folder = models.llama(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidRequest, match="quantised as 'gptq'; nf4, fp4, int8, fp8 are read: use the base it was"):
        residents.lease(models.spec("demo/base", models.source("demo/base", folder)))


def test_a_packed_weight_that_is_no_linear_layer_is_refused(tmp_path: Path, residents: Residents) -> None:
    folder = eight_bit_floats(plain(tmp_path / "plain"), tmp_path / "base", in_blocks=False)
    tensors = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[f"{name}_scale"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidRequest, match=r"embed_tokens\.weight: stored in few bits, and the model has no linear"):
        residents.lease(models.spec("demo/base", models.source("demo/base", folder)))
