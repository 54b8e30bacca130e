"""lora: low-rank adapters as peft's LORA tuner saves them, DoRA among them.

A module's delta is scaling · B @ A with scaling = alpha / r, or alpha / sqrt(r) with use_rslora; r and alpha may differ
by module through rank_pattern and alpha_pattern. With use_dora the sum of weight and delta is brought to a stored
magnitude. BD-LoRA stores the blocks of a block-diagonal A or B, QA-LoRA an A for groups of inputs; written out both are
plain LoRAs. What changes the base during training or acts on the input (PiSSA, aLoRA, ...) is recognised, and not read.

Source: arXiv:2106.09685; peft 0.21 `tuners/lora/{config,layer,model,dora}.py`, `utils/save_and_load.py`.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.errors import InvalidPatch, NotRepresentable
from adapterhub.merging.patch import Export, ExportTensor, Patch, SiteTerm
from adapterhub.merging.patterns import check_modules, matching, positive, read_pattern, whole
from adapterhub.merging.peft_adapter import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    Adapter,
    Module,
    Sites,
    Tuner,
    block_diagonal,
    peft_kind,
    repeated,
)

_FIELDS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "mag",
    ".lora_magnitude_vector.weight": "mag",
}
_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_NOT_MERGED: Mapping[str, str] = {
    "kasa_config": "KaSA removes the smallest singular components of the base",
    "layer_replication": "its layers are replicas of the base's",
    "target_parameters": "it adapts stacked expert parameters",
}
"""Keys of adapter_config.json that make the tensors something else than plain LoRA, and why."""

_OTHER_KINDS = ("lora_nums", "alora_invocation_tokens", "arrow_config")
"""Keys that make a LORA a kind of its own, which runs and does not fold."""


# ---- configuration ---------------------------------------------------------------------------------------------------


def _check(config: Mapping[str, Any], file: str) -> None:
    r = config.get("r", 8)
    if type(r) is not int or not 0 < r <= 65536:
        raise InvalidPatch(f"{file}: r is {r!r}; a whole number from 1 to 65536 is expected")
    for key in ("rank_pattern", "alpha_pattern"):
        read_pattern(config.get(key) or {}, f"{file}: {key}")
    positive(config.get("lora_alpha", 8), f"{file}: lora_alpha")
    whole(config.get("qalora_group_size", 16), f"{file}: qalora_group_size")
    blocks = config.get("use_bdlora") or {}
    if not isinstance(blocks, dict):
        raise InvalidPatch(f"{file}: use_bdlora is {str(blocks)[:80]}; an object is expected")
    whole(blocks.get("nblocks", 1), f"{file}: use_bdlora: nblocks")
    for key in ("target_modules_bd_a", "target_modules_bd_b"):
        check_modules(blocks.get(key) or [], f"{file}: use_bdlora: {key}")


def _rank(adapter: Adapter, module: Module) -> float:
    pattern = read_pattern(adapter.config.get("rank_pattern") or {}, CONFIG)
    return matching(pattern, module.path, adapter.config.get("r", 8))


def _scaling(adapter: Adapter, module: Module, r: int) -> float:
    """alpha / r, or alpha / sqrt(r), of one module. Source: peft `tuners/lora/layer.py`, update_layer."""
    pattern = read_pattern(adapter.config.get("alpha_pattern") or {}, CONFIG)
    alpha = matching(pattern, module.path, float(adapter.config.get("lora_alpha", 8)))
    return alpha / math.sqrt(r) if adapter.config.get("use_rslora") else alpha / r


def _why_not(config: Mapping[str, Any]) -> str | None:
    """Why the tensors are no plain LoRA, None where they are."""
    for key, why in _NOT_MERGED.items():
        if config.get(key) not in (None, False, [], {}):
            return f"{key} is set: {why}; it is stored and shown, and not merged"
    if config.get("use_dora") and (config.get("use_bdlora") or config.get("use_qalora")):
        return "use_dora is set together with use_bdlora or use_qalora, and peft has no adapter of both"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_MUTATING_INITS):
        return f"init_lora_weights is {init!r}, which changed the base in training; convert it to a plain LoRA"
    return None


# ---- tensors ---------------------------------------------------------------------------------------------------------


def _factors(module: Module) -> tuple[str, str]:
    """The names of the fields that are A and B."""
    return ("embedding_A", "embedding_B") if "embedding_A" in module.fields else ("A", "B")


def _plain(adapter: Adapter, module: Module) -> tuple[TensorHandle, TensorHandle]:
    """A and B written out: blocks on their diagonal, and A's column for a group of inputs once for each of them.

    Source: peft `tuners/lora/variants.py`, BdLoraLinearVariant and QALoraLinearVariant.
    """
    A, B = (module.fields[name] for name in _factors(module))
    blocks = adapter.config.get("use_bdlora") or {}
    count = blocks.get("nblocks", 1)
    if any(one in module.path for one in blocks.get("target_modules_bd_a") or []):
        A = block_diagonal(A, count)
    elif any(one in module.path for one in blocks.get("target_modules_bd_b") or []):
        B = block_diagonal(B, count)
    if adapter.config.get("use_qalora"):
        A = repeated(A, adapter.config.get("qalora_group_size", 16))
    return A, B


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    names = _factors(module)
    if not all(name in module.fields for name in names):
        yield "has a factor of an embedding's adapter and not the other"
        return
    try:
        A, B = _plain(adapter, module)
    except InvalidPatch as error:
        yield str(error)
        return
    if len(A.shape) < 2 or len(B.shape) < 2:
        yield f"lora_A is {A.shape} and lora_B {B.shape}: saved from a sharded run without gathering the weights"
    elif A.shape[0] != B.shape[1] or set(B.shape[2:]) - {1}:
        yield f"lora_A is {A.shape} and lora_B {B.shape}: their ranks differ"
    elif A.shape[0] != _rank(adapter, module):
        yield f"its rank is {A.shape[0]}, {CONFIG} says {_rank(adapter, module):g} (r or rank_pattern)"
    elif adapter.config.get("use_dora") and "mag" not in module.fields:
        yield f"has no lora_magnitude_vector, and {CONFIG} says use_dora"


def _ranks(adapter: Adapter, module: Module) -> int:
    return module.fields[_factors(module)[0]].shape[0]


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One lowrank or dora term, and a dense one for lora_bias."""
    A, B = _plain(adapter, module)
    is_embedding = "embedding_A" in module.fields
    site, options = sites.weight(module.path, (B.shape[0], *A.shape[1:]), is_embedding=is_embedding)
    scaling = _scaling(adapter, module, A.shape[0])
    if adapter.config.get("use_qalora"):
        # Groups are averaged, and the averages are multiplied by the number of groups.
        groups = module.fields["A"].shape[1]
        scaling *= groups * groups / A.shape[1]
    if "mag" in module.fields:
        fields = {"A": A, "B": B, "mag": module.fields["mag"]}
        yield SiteTerm(site, "dora", fields, options=options | {"scaling": scaling})
    else:
        yield SiteTerm(site, "lowrank", {"A": A, "B": B}, scaling, options)
    if "bias" in module.fields:
        bias_site = sites.bias(module.path, module.fields["bias"].shape)
        yield SiteTerm(bias_site, "dense", {"delta": module.fields["bias"]}, scaling)


# ---- writing ---------------------------------------------------------------------------------------------------------


def export(addends: Sequence[tuple[float, Patch]], base_name: str) -> Export:
    """The weighted sum of adapters as one: per module A's stacked and B's side by side, weights in B, scaling 1.

    Ranks add up and may differ by module (rank_pattern). Raises NotRepresentable for anything but low-rank terms.
    """
    parts: dict[str, list[tuple[float, SiteTerm]]] = {}
    modules: dict[str, str] = {}
    for weight, patch in addends:
        for term in patch.terms:
            module = _exported_module(term)
            if modules.setdefault(term.site, module) != module:
                raise NotRepresentable(f"{term.site}: called {module} and {modules[term.site]} by two adapters")
            parts.setdefault(module, []).append((weight, term))
    tensors = [one for module in sorted(parts) for one in _exported_pair(module, parts[module])]
    ranks = {module: sum(_term_rank(term) for _, term in parts[module]) for module in sorted(parts)}
    config = _exported_config(ranks, base_name)
    config["fan_in_fan_out"] = any(
        term.options["layer"] == "conv1d" for module_parts in parts.values() for _, term in module_parts
    )
    task_types = {patch.facts.detail.get("task_type") for _, patch in addends}
    config["task_type"] = task_types.pop() if len(task_types) == 1 else None
    return Export("lora", WEIGHTS, tuple(tensors), {CONFIG: config})


def _exported_module(term: SiteTerm) -> str:
    if term.term != "lowrank" or "module" not in term.options or {"d", "b"} & term.fields.keys():
        raise NotRepresentable(f"{term.site}: a {term.term} term; a LoRA holds low-rank terms alone, so drop --as lora")
    return str(term.options["module"])


def _term_rank(term: SiteTerm) -> int:
    return term.fields["A"].shape[0]


def _exported_pair(module: str, parts: Sequence[tuple[float, SiteTerm]]) -> Iterator[ExportTensor]:
    r = sum(_term_rank(term) for _, term in parts)
    A, B = parts[0][1].fields["A"], parts[0][1].fields["B"]
    kind = "lora_embedding_{}" if parts[0][1].options["layer"] == "embedding" else "lora_{}.weight"
    key = PREFIX + module + "." + kind
    yield ExportTensor(key.format("A"), "F32", (r, *A.shape[1:]), "A", tuple(parts), axis=0, is_scaled=False)
    shape = (B.shape[0], r, *B.shape[2:])
    yield ExportTensor(key.format("B"), "F32", shape, "B", tuple(parts), axis=1, is_scaled=True)


def _exported_config(ranks: Mapping[str, int], base_name: str) -> dict[str, Any]:
    """alpha equals r everywhere, so scaling is 1. The rank most modules have is r, the others are patterns."""
    common = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    others = {module: r for module, r in ranks.items() if r != common}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
    }


SPEC = peft_kind(
    Tuner(
        peft_type="LORA",
        fields=_FIELDS,
        required=(("A", "embedding_A"), ("B", "embedding_B")),
        shown=("r", "lora_alpha", "use_rslora", "use_dora", "init_lora_weights"),
        check=_check,
        contradictions=_contradictions,
        ranks=_ranks,
        why_not=_why_not,
        terms=_terms,
        is_mine=lambda config: not any(config.get(key) for key in _OTHER_KINDS),
    ),
    name="lora",
    title="LoRA",
    summary="Low-rank factors A and B on some modules",
    source="arXiv:2106.09685, as peft saves it",
    export=export,
)
