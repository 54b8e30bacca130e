"""Low-rank adapters whose effect depends on the input: their files as peft and its forks save them, and their rules.

Each file in `patches/` that reads one, and its like in `runtime/` that runs it, take their `Tuner` from here. Never
imports torch. Source: peft 0.21 `tuners/{lily,poly,lora,xlora,adaption_prompt,shadow}`; LoRAMoE's fork of peft.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from adapterhub.merging.checkpoint import Folder, TensorHandle
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import is_inside, join
from adapterhub.merging.patterns import matching, positive, read_pattern
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, Tuner

MAX_EXPERTS = 256
"""Most experts, skills or tasks that one adapter may have."""

MAX_INVOCATION_TOKENS = 1024
"""Most tokens that an invocation may have."""


# ---- configuration ---------------------------------------------------------------------------------------------------


def whole(config: Mapping[str, Any], key: str, default: int | None, high: int, file: str = CONFIG) -> int:
    """A whole number from 1 to `high` of the configuration. Raises InvalidPatch."""
    value = config.get(key, default)
    if type(value) is not int or not 0 < value <= high:
        raise InvalidPatch(f"{file}: {key} is {value!r}; a whole number from 1 to {high} is expected")
    return value


def number(config: Mapping[str, Any], key: str, default: float, file: str = CONFIG) -> float:
    """A finite number of the configuration. Raises InvalidPatch."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise InvalidPatch(f"{file}: {key} is {value!r}; a number is expected")
    return float(value)


def scaling(adapter: Adapter, module: Module, r: int) -> float:
    """alpha / r of a LoRA's module, or alpha / sqrt(r) with use_rslora."""
    pattern = read_pattern(adapter.config.get("alpha_pattern") or {}, CONFIG)
    alpha = matching(pattern, module.path, float(adapter.config.get("lora_alpha", 8)))
    return alpha / (r**0.5 if adapter.config.get("use_rslora") else r)


def _check_rank(config: Mapping[str, Any], file: str) -> None:
    whole(config, "r", 8, 65536, file)


def _check_lora(config: Mapping[str, Any], file: str) -> None:
    _check_rank(config, file)
    positive(config.get("lora_alpha", 8), f"{file}: lora_alpha")
    for key in ("rank_pattern", "alpha_pattern"):
        read_pattern(config.get(key) or {}, f"{file}: {key}")


# ---- tensors ---------------------------------------------------------------------------------------------------------


def _expected(module: Module, shapes: Mapping[str, Sequence[int | None]]) -> Iterator[str]:
    """Sentences on fields whose shapes are others; None stands for any size."""
    for name, expected in shapes.items():
        found = module.fields[name].shape
        is_alike = len(found) == len(expected)
        if not is_alike or any(size not in (None, own) for size, own in zip(expected, found, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in expected)
            yield f"{name} is {found}; ({wanted}) is expected"


def _lora_shapes(adapter: Adapter, module: Module) -> Iterator[str]:
    r = int(matching(read_pattern(adapter.config.get("rank_pattern") or {}, CONFIG), module.path, _r(adapter)))
    yield from _expected(module, {"A": (r, None), "B": (None, r)})


def _r(adapter: Adapter) -> int:
    return int(adapter.config.get("r", 8))


def _rank(adapter: Adapter, module: Module) -> int | None:
    return module.fields["A"].shape[0] if "A" in module.fields else None


_PAIR = {".lora_A.weight": "A", ".lora_B.weight": "B"}
_BOTH = (("A",), ("B",))


# ---- Lily ------------------------------------------------------------------------------------------------------------


def _check_lily(config: Mapping[str, Any], file: str) -> None:
    _check_rank(config, file)
    whole(config, "num_B", 1, MAX_EXPERTS, file)
    number(config, "scaling", 1.0, file)


def _lily_shapes(adapter: Adapter, module: Module) -> Iterator[str]:
    r, experts = _r(adapter), adapter.config.get("num_B", 1)
    yield from _expected(module, {"A": (r, None), "B": (r * experts, None), "router": (experts, r)})


LILY = Tuner(
    "LILY",
    {".lily_A.weight": "A", ".lily_B.weight": "B", ".lily_router.weight": "router"},
    required=(*_BOTH, ("router",)),
    shown=("r", "num_B", "stride_A", "scaling"),
    effect="runtime",
    check=_check_lily,
    contradictions=_lily_shapes,
    ranks=_rank,
)


# ---- Poly ------------------------------------------------------------------------------------------------------------


def _check_poly(config: Mapping[str, Any], file: str) -> None:
    _check_rank(config, file)
    for key, default in (("n_tasks", 1), ("n_skills", 4), ("n_splits", 1)):
        whole(config, key, default, MAX_EXPERTS if key != "n_tasks" else 1_000_000, file)
    if config.get("poly_type", "poly") != "poly":
        raise InvalidPatch(f"{file}: poly_type is {config['poly_type']!r}; 'poly' is the one that is known")


def _poly_shapes(adapter: Adapter, module: Module) -> Iterator[str]:
    r = _r(adapter)
    tasks, skills, splits = (
        adapter.config.get(key, default) for key, default in (("n_tasks", 1), ("n_skills", 4), ("n_splits", 1))
    )
    shapes = {"A": (splits, skills, None, r), "B": (splits, skills, r, None), "logits": (tasks, splits * skills)}
    yield from _expected(module, shapes)


POLY = Tuner(
    "POLY",
    {".poly_lora_A": "A", ".poly_lora_B": "B", ".poly_router.module_logits": "logits"},
    required=(*_BOTH, ("logits",)),
    shown=("r", "n_tasks", "n_skills", "n_splits"),
    effect="runtime",
    check=_check_poly,
    contradictions=_poly_shapes,
    ranks=lambda adapter, module: _r(adapter),
    more=lambda adapter: {"needs": ["task_ids"]},
)


# ---- activated LoRA --------------------------------------------------------------------------------------------------


def _check_alora(config: Mapping[str, Any], file: str) -> None:
    _check_lora(config, file)
    tokens = config.get("alora_invocation_tokens")
    is_whole = isinstance(tokens, list) and all(type(one) is int and one >= 0 for one in tokens)
    if not is_whole or not 0 < len(tokens or ()) <= MAX_INVOCATION_TOKENS:
        raise InvalidPatch(
            f"{file}: alora_invocation_tokens is {str(tokens)[:80]}; a list of 1 to {MAX_INVOCATION_TOKENS} tokens is "
            "expected"
        )


ALORA = Tuner(
    "LORA",
    _PAIR,
    required=_BOTH,
    shown=("r", "lora_alpha", "use_rslora", "alora_invocation_tokens"),
    effect="runtime",
    check=_check_alora,
    contradictions=_lora_shapes,
    ranks=_rank,
    more=lambda adapter: {"needs": ["invocation tokens " + " ".join(map(str, _tokens(adapter)))]},
    is_mine=lambda config: config.get("alora_invocation_tokens") not in (None, []),
)


def _tokens(adapter: Adapter) -> Sequence[int]:
    return list(adapter.config["alora_invocation_tokens"])


# ---- LoRAMoE ---------------------------------------------------------------------------------------------------------


def _check_loramoe(config: Mapping[str, Any], file: str) -> None:
    _check_lora(config, file)
    whole(config, "lora_nums", None, MAX_EXPERTS, file)


def _loramoe_shapes(adapter: Adapter, module: Module) -> Iterator[str]:
    r, experts = _r(adapter), adapter.config["lora_nums"]
    wanted = {f"{name}{j}" for j in range(experts) for name in "AB"} | {"route"}
    if set(module.fields) != wanted:
        different = sorted(set(module.fields) ^ wanted)[0]
        yield f"{different} is there or missing; a route and A, B of {experts} experts (lora_nums) are expected"
        return
    shapes: dict[str, Sequence[int | None]] = {f"A{j}": (r, None) for j in range(experts)}
    shapes |= {f"B{j}": (None, r) for j in range(experts)}
    yield from _expected(module, {**shapes, "route": (experts, None)})


LORAMOE = Tuner(
    "LORA",
    {
        ".lora_route.weight": "route",
        **{f".lora_{name}{j}.weight": f"{name}{j}" for j in range(MAX_EXPERTS) for name in "AB"},
    },
    required=(("route",),),
    shown=("r", "lora_alpha", "lora_nums"),
    effect="runtime",
    check=_check_loramoe,
    contradictions=_loramoe_shapes,
    ranks=lambda adapter, module: _r(adapter),
    is_mine=lambda config: bool(config.get("lora_nums")),
)


# ---- adapters that route between others ------------------------------------------------------------------------------


def _check_arrow(config: Mapping[str, Any], file: str) -> None:
    _check_lora(config, file)
    arrow = config.get("arrow_config")
    if not isinstance(arrow, dict):
        raise InvalidPatch(f"{file}: arrow_config is a {type(arrow).__name__}; an object is expected")
    names = [arrow.get(key) or [] for key in ("task_adapter_names", "gks_adapter_names")]
    for name in (one for some in names for one in (some if isinstance(some, list) else [None])):
        if not isinstance(name, str) or "/" in name or not is_inside(name):
            raise InvalidPatch(
                f"{file}: arrow_config names {str(name)[:80]!r}; names of folders beside it are expected"
            )
    if not 0 < len(names[0]) <= MAX_EXPERTS:
        raise InvalidPatch(f"{file}: arrow_config names {len(names[0])} task adapters; 1 to {MAX_EXPERTS} are expected")
    if arrow.get("use_gks") and not names[1]:
        raise InvalidPatch(f"{file}: arrow_config says use_gks and names no gks_adapter_names")
    if whole(arrow, "top_k", 3, MAX_EXPERTS, f"{file}: arrow_config") > len(names[0]):
        raise InvalidPatch(f"{file}: arrow_config: top_k is {arrow.get('top_k', 3)} of {len(names[0])} task adapters")
    positive(arrow.get("router_temperature", 1.0), f"{file}: arrow_config: router_temperature")
    if arrow.get("rng_seed") is not None and type(arrow["rng_seed"]) is not int:
        raise InvalidPatch(f"{file}: arrow_config: rng_seed is {arrow['rng_seed']!r}; a whole number is expected")


def arrow_experts(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The task adapters and the general ones, by the names of their folders beside the router's."""
    arrow = config["arrow_config"]
    return list(arrow["task_adapter_names"]), list(arrow.get("gks_adapter_names") or []) if arrow.get("use_gks") else []


ARROW = Tuner(
    "LORA",
    _PAIR,
    required=_BOTH,
    shown=("r",),
    effect="runtime",
    check=_check_arrow,
    contradictions=_lora_shapes,
    ranks=_rank,
    more=lambda adapter: {"needs": [f"adapter {name}" for some in arrow_experts(adapter.config) for name in some]},
    is_mine=lambda config: config.get("arrow_config") not in (None, {}),
)

_CLASSIFIER = "internal_xlora_classifier."


def _check_xlora(config: Mapping[str, Any], file: str) -> None:
    adapters = config.get("adapters")
    if not isinstance(adapters, dict) or not 0 < len(adapters) <= MAX_EXPERTS:
        found = type(adapters).__name__ if not isinstance(adapters, dict) else f"an object of {len(adapters)}"
        raise InvalidPatch(f"{file}: adapters is {found}; an object that names 1 to {MAX_EXPERTS} adapters is expected")
    if not all(isinstance(source, str) for source in adapters.values()):
        raise InvalidPatch(f"{file}: adapters: a path of each adapter is expected, as text")
    whole(config, "hidden_size", None, 1_000_000, file)
    whole(config, "xlora_depth", 1, 64, file)
    for key, default in (("softmax_temperature", 1.0), ("scaling_pass_value", 0.0), ("global_scaling_weight", 1.0)):
        number(config, key, default, file)
    if config.get("top_k_lora") is not None:
        whole(config, "top_k_lora", None, len(adapters), file)


def classifier_layers(adapter: Adapter) -> list[tuple[TensorHandle, TensorHandle]]:
    """(weight, bias) of X-LoRA's classifier, first layer first. Raises InvalidPatch for layers that do not chain."""
    found: dict[int, dict[str, TensorHandle]] = {}
    for name, handle in adapter.banks.items():
        place, _, leaf = name.removeprefix(_CLASSIFIER + "layers.").partition(".")
        if not place.isdigit() or leaf not in ("weight", "bias"):
            raise InvalidPatch(
                f"{adapter.file}: {name} has no layer number; peft 0.21 drops it, and the first layer, when it "
                "saves; give the tensors the names that the live model has"
            )
        found.setdefault(int(place), {})[leaf] = handle
    layers = [(found[place].get("weight"), found[place].get("bias")) for place in sorted(found)]
    if len(layers) != adapter.config.get("xlora_depth", 1):
        depth = adapter.config.get("xlora_depth", 1)
        raise InvalidPatch(
            f"{adapter.file}: holds {len(layers)} layers of a classifier, and {CONFIG} says xlora_depth {depth}"
        )
    width = adapter.config["hidden_size"]
    chained: list[tuple[TensorHandle, TensorHandle]] = []
    for weight, bias in layers:
        if weight is None or bias is None or weight.shape != (*bias.shape, width):
            raise InvalidPatch(f"{adapter.file}: a classifier's layer does not take {width} numbers, or has no bias")
        width = weight.shape[0]
        chained.append((weight, bias))
    if width % len(adapter.config["adapters"]):
        raise InvalidPatch(f"{adapter.file}: the classifier gives {width} numbers for each of its adapters' layers")
    return chained


def _classifier(adapter: Adapter) -> Iterator[str]:
    try:
        classifier_layers(adapter)
    except InvalidPatch as error:
        yield str(error).removeprefix(f"{adapter.file}: ")


def xlora_experts(folder: Folder, path: str, config: Mapping[str, Any]) -> list[str]:
    """The folders of X-LoRA's adapters, in order, inside this repository alone. Raises InvalidPatch.

    The configuration gives a path on the trainer's machine; what counts here is a folder of that path, of its last
    part, or of the adapter's name.
    """
    names = set(folder.names())
    found = []
    for name, source in config["adapters"].items():
        last = source.rstrip("/").rpartition("/")[2]
        places = [join(path, one) for one in (source, last, name) if one and is_inside(one)]
        place = next((one for one in places if join(one, CONFIG) in names), None)
        if place is None:
            raise InvalidPatch(
                f"{join(path, CONFIG)}: adapter {name[:80]!r} at {source[:200]!r} is not in this repository; push its "
                f"folder as {name[:80]!r} beside the configuration"
            )
        found.append(place)
    return found


XLORA = Tuner(
    "XLORA",
    banks=(_CLASSIFIER,),
    shown=("xlora_depth", "layerwise_scalings", "top_k_lora", "enable_softmax"),
    effect="runtime",
    check=_check_xlora,
    disagreements=_classifier,
    more=lambda adapter: {"needs": [f"adapter {name}" for name in adapter.config["adapters"]]},
)

EXPERT = Tuner("LORA", _PAIR, required=_BOTH, check=_check_lora, contradictions=_lora_shapes)
"""A plain LoRA that a router chooses."""


# ---- what peft itself runs -------------------------------------------------------------------------------------------


def _check_adaption(config: Mapping[str, Any], file: str) -> None:
    for key in ("adapter_len", "adapter_layers"):
        whole(config, key, None, 1_000_000, file)
    target = config.get("target_modules")
    if target is not None and (not isinstance(target, str) or not target.replace("_", "").isalnum()):
        raise InvalidPatch(f"{file}: target_modules is {str(target)[:80]!r}; the name of attention modules is expected")


def _adaption_shapes(adapter: Adapter, module: Module) -> Iterator[str]:
    yield from _expected(module, {"prompt": (1, adapter.config["adapter_len"], None), "gate": (1,)})


def _adaption_layers(adapter: Adapter) -> Iterator[str]:
    layers = adapter.config["adapter_layers"]
    if len(adapter.modules) != layers:
        yield f"holds prompts of {len(adapter.modules)} layers, and {CONFIG} says adapter_layers {layers}"


ADAPTION_PROMPT = Tuner(
    "ADAPTION_PROMPT",
    {".adaption_prompt": "prompt", ".adaption_gate": "gate"},
    required=(("prompt",), ("gate",)),
    shown=("adapter_len", "adapter_layers"),
    effect="runtime",
    check=_check_adaption,
    contradictions=_adaption_shapes,
    disagreements=_adaption_layers,
)


def _check_shadow(config: Mapping[str, Any], file: str) -> None:
    _check_rank(config, file)
    number(config, "shadow_alpha", 0.1, file)
    if config.get("shadow_model", "mirror") != "mirror":
        raise InvalidPatch(
            f"{file}: shadow_model is {str(config['shadow_model'])[:80]!r}; a shadow that is a model elsewhere is "
            "never fetched, and 'mirror' is the one that its file holds"
        )
    for key in ("shadow_num_hidden_layers", "shadow_hidden_size", "shadow_num_attention_heads", "update_hidden_size"):
        if config.get(key) is not None:
            whole(config, key, None, 1_000_000, file)


SHADOW = Tuner(
    "SHADOW",
    {
        ".shadow_down.default.weight": "down",
        ".shadow_up.default.weight": "up",
        **{
            f".shadow_update_{part}.default.{layer}.{leaf}": f"{part}.{layer}.{leaf}"
            for part in ("transform", "gate")
            for layer in (0, 2)
            for leaf in ("weight", "bias")
        },
    },
    banks=("shadow_backbone.", "shadow_projection.", "shadow_head."),
    required=(("down",), ("up",)),
    shown=("r", "shadow_alpha", "shadow_num_hidden_layers"),
    effect="runtime",
    check=_check_shadow,
    ranks=lambda adapter, module: module.fields["down"].shape[0],
)
