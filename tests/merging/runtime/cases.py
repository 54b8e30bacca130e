"""For every run-time kind, patches on tiny models and an oracle that says what the patched model must answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from adapterhub.merging.native_runtime import write_runtime
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, trained

TASKS = {"SEQ_2_SEQ_LM": ("t5", "mt5", "whisper"), "SEQ_CLS": ("bert", "electra")}


@dataclass
class Made:
    """A patch in `folder`, a fresh `model` to put it on, and the oracle.

    oracle: `(**inputs)` gives the logits that the patched model must give. calls: what a call takes beside the inputs.
    peft: peft's own model, where that is the oracle. path: of the patch inside the folder.
    inputs: those that the oracle was asked with, where they are not the architecture's own.
    """

    model: Any
    folder: Path
    oracle: Callable[..., torch.Tensor]
    oracle_name: str
    calls: Mapping[str, Any] = field(default_factory=dict)
    peft: Any = None
    path: str = ""
    inputs: Mapping[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Case:
    """One kind on one architecture. generates: whether its oracle is asked token by token too."""

    kind: str
    architecture: str
    make: Callable[[Path, str], Made]
    generates: bool = True

    def __str__(self) -> str:
        return f"{self.kind}-{self.architecture}"


def fresh(architecture: str, dtype: str) -> Any:
    """A model of random values that never ends a sentence by itself."""
    model: Any = ARCHITECTURES[architecture].make(dtype=DTYPES[dtype])
    model.name_or_path = "tiny/base"
    if model.can_generate():
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
    return model


def task_type(architecture: str) -> str:
    return next((task for task, names in TASKS.items() if architecture in names), "CAUSAL_LM")


def peft_case(
    kind: str, architecture: str, config: Callable[..., Any], *, calls: Mapping[str, Any] | None = None, **options: Any
) -> Case:
    """A kind of peft's, whose oracle is peft on another copy of the model."""

    def make(tmp_path: Path, dtype: str) -> Made:
        folder = tmp_path / "patch"
        made = config(task_type=task_type(architecture), **options)
        trained(fresh(architecture, dtype).float(), made, folder, std=0.3)
        oracle: Any = PeftModel.from_pretrained(fresh(architecture, dtype), str(folder)).eval()

        def answer(**inputs: Any) -> torch.Tensor:
            if kind == "multitask_prompt_tuning" and "decoder_input_ids" in inputs:
                # peft drops decoder_input_ids here and takes embedded ones.
                inputs["decoder_inputs_embeds"] = oracle.word_embeddings(inputs.pop("decoder_input_ids"))
            found: torch.Tensor = oracle(**inputs).logits
            return found

        return Made(fresh(architecture, dtype), folder, answer, "peft PeftModel", calls or {}, oracle)

    return Case(kind, architecture, make, generates=task_type(architecture) != "SEQ_CLS")


def _peft_cases() -> Sequence[Case]:
    import peft

    found: list[Case] = []
    causal = ("gpt2", "llama", "mistral", "gemma", "opt", "phi3", "falcon", "mixtral")
    tokens: dict[str, Any] = {"num_virtual_tokens": 3}
    for name in (*causal, "bert", "electra", "t5", "mt5"):
        found.append(peft_case("prompt_tuning", name, peft.PromptTuningConfig, **tokens))
        encoder: dict[str, Any] = {"encoder_hidden_size": 8}
        found.append(peft_case("p_tuning", name, peft.PromptEncoderConfig, **tokens, **encoder))
        tasks: dict[str, Any] = {"num_tasks": 2, "num_ranks": 2, "num_transformer_submodules": 1 if name != "t5" else 2}
        if name not in ("mt5",):
            found.append(
                peft_case(
                    "multitask_prompt_tuning",
                    name,
                    peft.MultitaskPromptTuningConfig,
                    calls={"task_ids": torch.tensor([1])},
                    **tokens,
                    **tasks,
                )
            )
    for name in causal:
        ids: dict[str, Any] = {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 4]}
        found.append(peft_case("cpt", name, peft.CPTConfig, **ids))
    for name in (*causal, "t5", "mt5"):
        found.append(peft_case("prefix_tuning", name, peft.PrefixTuningConfig, **tokens))
        found.append(peft_case("cartridge", name, peft.CartridgeConfig, **tokens))
    return found


# ---- adapters that look at the input ---------------------------------------------------------------------------------

_LINEAR = {"gpt2": ["c_attn", "c_fc"], "t5": ["q", "v", "wi"], "bert": ["query", "value"], "opt": ["q_proj", "v_proj"]}


def targets(architecture: str) -> list[str]:
    """Some linear modules of attention and feed-forward."""
    return _LINEAR.get(architecture, list(ARCHITECTURES[architecture].linear[:4:2]))


def _input_cases() -> Sequence[Case]:
    import peft

    found: list[Case] = []
    for name in ("llama", "mistral", "gemma", "opt", "phi3", "falcon", "t5", "bert"):
        lily: dict[str, Any] = {"r": 2, "num_B": 3, "stride_A": 1, "scaling": 0.7}
        found.append(peft_case("lily", name, peft.LilyConfig, target_modules=targets(name), **lily))
        poly: dict[str, Any] = {"r": 2, "n_tasks": 3, "n_skills": 2, "n_splits": 2}
        tasks = {"task_ids": torch.tensor([2])}
        found.append(peft_case("poly", name, peft.PolyConfig, calls=tasks, target_modules=targets(name), **poly))
    for name in ("gpt2", "llama", "mistral", "gemma", "opt", "phi3", "falcon", "mixtral"):
        alora: dict[str, Any] = {"r": 3, "lora_alpha": 5, "alora_invocation_tokens": [7, 8]}
        found.append(peft_case("alora", name, peft.LoraConfig, target_modules=targets(name), **alora))
    for name in ("gpt2", "llama", "mistral"):
        lengths: dict[str, Any] = {"adapter_len": 3, "adapter_layers": 2}
        found.append(peft_case("adaption_prompt", name, peft.AdaptionPromptConfig, **lengths))
    for name in ("llama", "mistral", "gemma", "phi3"):
        found.append(peft_case("shadow", name, peft.ShadowConfig, r=3))
    found += [Case("arrow", name, arrow(name)) for name in ("llama", "mistral", "gpt2", "opt")]
    found += [Case("xlora", name, xlora(name)) for name in ("llama", "mistral", "opt")]
    found += [Case("loramoe", name, loramoe(name)) for name in ("llama", "gpt2")]
    return found


def _experts(architecture: str, dtype: str, folder: Path, names: Sequence[str]) -> None:
    from peft import LoraConfig

    for seed, name in enumerate(names):
        config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=3 + seed, target_modules=targets(architecture))
        trained(fresh(architecture, dtype).float(), config, folder / name, seed=seed, std=0.3)


def arrow(architecture: str) -> Callable[[Path, str], Made]:
    def make(tmp_path: Path, dtype: str) -> Made:
        from peft import ArrowConfig, create_arrow_model

        folder = tmp_path / "patch"
        names = ["task_0", "task_1", "task_2"]
        _experts(architecture, dtype, folder, [*names, "gks_0"])
        config = ArrowConfig(top_k=2, router_temperature=0.7, use_gks=True, rng_seed=3)
        paths = [str(folder / name) for name in names]
        oracle: Any = create_arrow_model(fresh(architecture, dtype), paths, config, [str(folder / "gks_0")])
        oracle.eval()
        oracle.save_pretrained(str(folder), selected_adapters=["arrow_router"], save_embedding_layers=False)
        return Made(
            fresh(architecture, dtype),
            folder,
            lambda **inputs: oracle(**inputs).logits,
            "peft create_arrow_model",
            peft=oracle,
            path="arrow_router",
        )

    return make


def xlora(architecture: str) -> Callable[[Path, str], Made]:
    def make(tmp_path: Path, dtype: str) -> Made:
        from peft import XLoraConfig, get_peft_model
        from safetensors.torch import save_file

        folder = tmp_path / "patch"
        _experts(architecture, dtype, folder, ["0", "1"])
        bare = fresh(architecture, dtype)
        bare.config.use_cache = False
        adapters = {name: str(folder / name) for name in ("0", "1")}
        options: dict[str, Any] = {"xlora_depth": 2, "xlora_size": 5, "layerwise_scalings": True, "top_k_lora": 1}
        config = XLoraConfig(
            task_type="CAUSAL_LM", hidden_size=16, adapters=adapters, softmax_temperature=0.5, **options
        )
        torch.manual_seed(5)
        oracle: Any = get_peft_model(bare, config).eval()
        (tmp_path / "config").mkdir()
        config.save_pretrained(str(tmp_path / "config"))
        (folder / "adapter_config.json").write_bytes((tmp_path / "config" / "adapter_config.json").read_bytes())
        # peft's own save leaves the classifier's first layer out and puts the base's weights into the experts.
        layers = oracle.base_model.internal_xlora_classifier.state_dict()
        named = {f"base_model.internal_xlora_classifier.{name}": one for name, one in layers.items()}
        save_file(named, folder / "adapter_model.safetensors")
        return Made(
            fresh(architecture, dtype), folder, lambda **inputs: oracle(**inputs).logits, "peft XLoraModel", peft=oracle
        )

    return make


def loramoe(architecture: str) -> Callable[[Path, str], Made]:
    """The fork's formula, written by hand on copies of the layers."""

    def make(tmp_path: Path, dtype: str) -> Made:
        import json

        from safetensors.torch import save_file

        model = fresh(architecture, dtype)
        experts, r, alpha = 3, 2, 5
        generator = torch.Generator().manual_seed(3)
        stored: dict[str, torch.Tensor] = {}
        layers: dict[str, Mapping[str, torch.Tensor]] = {}
        for path, module in model.named_modules():
            if path.rpartition(".")[2] in targets(architecture):
                outer, inner = module.weight.shape if architecture != "gpt2" else module.weight.T.shape
                tensors = {"lora_route": torch.randn(experts, inner, generator=generator)}
                for j in range(experts):
                    tensors[f"lora_A{j}"] = torch.randn(r, inner, generator=generator)
                    tensors[f"lora_B{j}"] = torch.randn(outer, r, generator=generator)
                stored |= {f"base_model.model.{path}.{name}.weight": one for name, one in tensors.items()}
                layers[path] = tensors
        folder = tmp_path / "patch"
        folder.mkdir()
        save_file(stored, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "lora_nums": experts, "blc_alpha": 0.0}
        (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets(architecture)}))

        class Routed(torch.nn.Module):
            def __init__(self, inner: Any, tensors: Mapping[str, torch.Tensor]) -> None:
                super().__init__()
                self.inner, self.tensors = inner, {name: one.double() for name, one in tensors.items()}

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y: torch.Tensor = self.inner(x)
                probabilities = torch.softmax(torch.einsum("bti,ni->btn", x, self.tensors["lora_route"]), -1)
                for j in range(experts):
                    B, A = self.tensors[f"lora_B{j}"], self.tensors[f"lora_A{j}"]
                    y = y + alpha / r * probabilities[..., j : j + 1] * torch.einsum("or,ri,bti->bto", B, A, x)
                return y

        oracle = fresh(architecture, dtype).double()
        for path, factors in layers.items():
            parent, _, leaf = path.rpartition(".")
            setattr(oracle.get_submodule(parent), leaf, Routed(oracle.get_submodule(path), factors))
        return Made(model, folder, lambda **inputs: oracle(**inputs).logits, "the fork's formula, float64")

    return make


# ---- edits of hidden states, in the native format --------------------------------------------------------------------


class Edited(torch.nn.Module):
    """A module with a formula after it: `formula(input, output)` in float64. Its attributes are the module's."""

    def __init__(self, inner: Any, formula: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.formula = inner, formula

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__["_modules"].get(name)
        return own if own is not None else getattr(self.__dict__["_modules"]["inner"], name)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = self.inner(x, *args, **kwargs)
        return (self.formula(x, found[0]), *found[1:]) if isinstance(found, tuple) else self.formula(x, found)


BLOCKS = {"llama": "model.layers.{}", "gpt2": "transformer.h.{}", "bert": "bert.encoder.layer.{}", "ast": ""}
BLOCKS["ast"] = "audio_spectrogram_transformer.layers.{}"
FEED_FORWARD = {"llama": ".mlp", "gpt2": ".mlp", "bert": ".output.dense", "ast": ".mlp"}
OUTPUTS = {"llama": ".self_attn.o_proj", "gpt2": ".attn.c_proj", "opt": ".self_attn.out_proj"}
NORMS = {"gpt2": ".ln_2", "bert": ".output.LayerNorm", "opt": ".final_layer_norm"}
BLOCKS["opt"] = "model.decoder.layers.{}"


def native_case(
    kind: str,
    architecture: str,
    end: str,
    shapes: Mapping[str, Sequence[int]],
    formula: Callable[[Mapping[str, torch.Tensor]], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]],
    *,
    options: Mapping[str, Any] | None = None,
    shared: Mapping[str, Sequence[int]] | None = None,
    calls: Mapping[str, Any] | None = None,
    before: bool = False,
) -> Case:
    """A patch of random numbers on both blocks; formula: from a module's tensors, what its output becomes.

    before: the formula is of the module's input.
    """

    def make(tmp_path: Path, dtype: str) -> Made:
        generator = torch.Generator().manual_seed(11)
        whole = {name: torch.randn(*shape, generator=generator) * 0.5 for name, shape in (shared or {}).items()}
        modules = {
            BLOCKS[architecture].format(layer) + end: {
                name: torch.randn(*shape, generator=generator) * 0.5 for name, shape in shapes.items()
            }
            for layer in (0, 1)
        }
        write_runtime(
            tmp_path / "patch",
            kind,
            modules={path: {name: one.numpy() for name, one in fields.items()} for path, fields in modules.items()},
            shared={name: one.numpy() for name, one in whole.items()},
            options=options,
        )
        oracle = fresh(architecture, dtype).double()
        for path, fields in modules.items():
            edit = formula({name: one.double() for name, one in {**fields, **whole}.items()})
            parent, _, leaf = path.rpartition(".")
            inner = oracle.get_submodule(path)
            if before:
                inner.register_forward_pre_hook(lambda module, args, edit=edit: (edit(args[0], args[0]), *args[1:]))
            else:
                setattr(oracle.get_submodule(parent), leaf, Edited(inner, edit))

        def answer(**inputs: Any) -> torch.Tensor:
            given = {
                name: one.double() if isinstance(one, torch.Tensor) and one.is_floating_point() else one
                for name, one in inputs.items()
                if name not in (calls or {})
            }
            found: torch.Tensor = oracle(**given).logits
            return found

        return Made(fresh(architecture, dtype), tmp_path / "patch", answer, "formula, float64", calls or {})

    return Case(kind, architecture, make, generates=architecture in ("llama", "gpt2", "opt"))


def _native_cases() -> Sequence[Case]:
    d, r, h, e = 16, 3, 5, 4
    found: list[Case] = []
    for name in ("llama", "gpt2", "bert", "ast"):
        found.append(
            native_case(
                "steering",
                name,
                "",
                {"vector": (d,)},
                lambda t: lambda x, y: y + 2.5 * t["vector"],
                options={"strength": 2.5},
            )
        )
        reft = {"R": (r, d), "W": (r, d), "b": (r,)}
        found.append(
            native_case(
                "reft",
                name,
                "",
                reft,
                lambda t: lambda x, y: y + torch.einsum("rd,btr->btd", t["R"], y @ t["W"].T + t["b"] - y @ t["R"].T),
            )
        )
        shapes = {"down.weight": (h, d), "down.bias": (h,), "up.weight": (d, h), "up.bias": (d,)}
        for parallel in (False, True):

            def bottleneck(t: Mapping[str, torch.Tensor], parallel: bool = parallel) -> Any:
                def formula(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                    z = x if parallel else y
                    if not parallel:
                        mean, var = z.mean(-1, keepdim=True), z.var(-1, keepdim=True, unbiased=False)
                        z = (z - mean) / (var + 1e-6).sqrt() * t["norm.weight"] + t["norm.bias"]
                    hidden = torch.relu(z @ t["down.weight"].T + t["down.bias"])
                    return y + 0.8 * (hidden @ t["up.weight"].T + t["up.bias"])

                return formula

            norm = {} if parallel else {"norm.weight": (d,), "norm.bias": (d,)}
            options = {"scaling": 0.8, "is_parallel": parallel, "norm_eps": 1e-6}
            end = FEED_FORWARD[name] if parallel and name != "bert" else ""
            found.append(native_case("bottleneck", name, end, {**shapes, **norm}, bottleneck, options=options))
    for name, heads in (("llama", 4), ("gpt2", 2), ("opt", 4)):
        found.append(
            native_case(
                "lofit",
                name,
                OUTPUTS[name],
                {"A": (heads, d // heads), "v": (heads, d // heads)},
                lambda t: lambda z, _: (1 + t["A"].flatten()) * z + t["v"].flatten(),
                before=True,
            )
        )
    for name in ("gpt2", "bert", "opt"):

        def norm_of(t: Mapping[str, torch.Tensor], eps: float = 1e-12 if name == "bert" else 1e-5) -> Any:
            speaker = t["embeddings"][2]
            scale = t["scale.weight"] @ speaker + t["scale.bias"]
            shift = t["shift.weight"] @ speaker + t["shift.bias"]

            def formula(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
                return (x - mean) / (var + eps).sqrt() * scale + shift

            return formula

        conditional = {"scale.weight": (d, e), "scale.bias": (d,), "shift.weight": (d, e), "shift.bias": (d,)}
        found.append(
            native_case(
                "conditional_norm",
                name,
                NORMS[name],
                conditional,
                norm_of,
                shared={"embeddings": (3, e)},
                calls={"speaker_ids": torch.tensor([2])},
            )
        )
    return [
        *found,
        *(Case("ept", name, ept(name), generates=name != "bert") for name in ("llama", "gpt2", "bert", "t5")),
    ]


def ept(architecture: str) -> Callable[[Path, str], Made]:
    """The prompt and the update of the embeddings, written from the formula, before a bare model in float64."""

    def make(tmp_path: Path, dtype: str) -> Made:
        n, d, m, r, spaces, h = 3, 16, 5, 2, 3, 4
        generator = torch.Generator().manual_seed(2)
        shapes = {"prompt": (n, d), "A": (m, r), "B": (r, d), "gate": (d, spaces)}
        shapes |= {"down": (spaces, d, h), "up": (spaces, h, d)}  # type: ignore[dict-item]
        t = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
        write_runtime(tmp_path / "patch", "ept", shared={name: one.numpy() for name, one in t.items()})
        t = {name: one.double() for name, one in t.items()}
        delta = t["A"] @ t["B"]
        attention = torch.softmax(t["prompt"] @ delta.T / d**0.5, dim=1)
        fused = t["prompt"] + attention @ delta
        gate = torch.softmax(t["prompt"].mean(0) @ t["gate"], dim=0)
        prompt = sum(gate[k] * fused @ t["down"][k] @ t["up"][k] for k in range(spaces))
        oracle = fresh(architecture, dtype).double()

        def answer(input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
            embeds = oracle.get_input_embeddings()(input_ids).clone()
            for place in range(min(m, embeds.shape[1])):
                embeds[:, place] += delta[place]
            found: torch.Tensor = oracle(inputs_embeds=torch.cat([prompt[None], embeds], 1), **inputs).logits  # type: ignore[index]
            return found

        return Made(fresh(architecture, dtype), tmp_path / "patch", answer, "formula, float64")

    return make


# ---- what the library adapters saved ---------------------------------------------------------------------------------

CORPUS = Path(__file__).parent / "adapters_corpus"


def adapters_case(name: str) -> Case:
    """A folder that adapters 1.3.0 wrote, and the logits that it gave for one sentence."""
    folder = CORPUS / "cases" / name
    base = (folder / "base").read_text()

    def make(tmp_path: Path, dtype: str) -> Made:
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

        loaders = {"bert": AutoModelForSequenceClassification, "bert-mlm": AutoModelForMaskedLM}
        model: Any = loaders.get(base, AutoModelForCausalLM).from_pretrained(CORPUS / "bases" / base)
        model = model.to(DTYPES[dtype]).eval()
        if model.can_generate():
            model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
        expected = load_file(folder / "expected.safetensors")
        return Made(
            model,
            folder,
            lambda **inputs: expected["logits"],
            "adapters 1.3.0",
            inputs={"input_ids": expected["input_ids"]},
        )

    return Case("adapters", f"{base} {name}", make, generates=False)


CASES: Sequence[Case] = [
    *_peft_cases(),
    *_input_cases(),
    *_native_cases(),
    *map(
        adapters_case,
        sorted(one.name for one in (CORPUS / "cases").iterdir() if not one.name.startswith(("lora", "ia3"))),
    ),
]
