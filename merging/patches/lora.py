"""lora: low-rank adapters as peft's LORA tuner saves them, DoRA among them.

A module's delta is scaling · B @ A with scaling = alpha / r, or alpha / sqrt(r) with use_rslora; r and alpha may differ
by module through rank_pattern and alpha_pattern. With use_dora the sum of weight and delta is brought to a stored
magnitude. BD-LoRA stores the blocks of a block-diagonal A or B, QA-LoRA an A for groups of inputs; written out both are
plain LoRAs. With target_parameters the factors are those of all experts of a stacked parameter.

PiSSA, OLoRA and KaSA trained on a base that lacks a low-rank part of this one: a second low-rank term takes it out, so
that the patch is the exact delta of the base it was made for. Where that part cannot be worked out from the base alone
(CorDA, LoRA-GA, randomised PiSSA), `read_with_initial` takes it from the adapter as it was before training. What acts
on the input (aLoRA, ...) is recognised, and not read.

Source: arXiv:2106.09685; peft 0.21 `tuners/lora/{config,layer,model,dora}.py`, `utils/save_and_load.py`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle
from adapterhub.merging.errors import InvalidPatch, NotFoldable, NotRepresentable
from adapterhub.merging.folders import join, json_digest
from adapterhub.merging.lora_variants import (
    changes_base,
    expert_of,
    gathered_terms,
    held_parameters,
    stacked_terms,
    taken_term,
)
from adapterhub.merging.lowrank_export import Pair, copied, is_dora, pairs_of, patterns
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
    open_adapter,
    peft_kind,
    read,
    read_config,
    repeated,
)
from adapterhub.merging.replicas import layer_ranges

_OF_TRAINING = (
    "velora_embed",
    *(f"monteclora_sampler.{name}" for name in ("expert_weights", "expert_weights_prior", "gaussian_var_prior")),
    "monteclora_sampler.std_prior",
)
"""Tensors that VeLoRA and MonteCLoRA need to go on training, and that their merge leaves out."""

_FIELDS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "mag",
    ".lora_magnitude_vector.weight": "mag",
    ".lora_diag": "d",
    **{f".lora_{name}": name for name in _OF_TRAINING},
}
_NOT_RECOMPUTED = ("pissa_niter", "corda", "lora_ga")
"""Initialisations that took from the base what it alone does not tell: samples, gradients or chance decided."""

_OTHER_KINDS = ("lora_nums", "alora_invocation_tokens", "arrow_config")
"""Keys that make a LORA a kind of its own, which runs and does not fold."""


# ---- configuration ---------------------------------------------------------------------------------------------------


def _check(config: Mapping[str, Any], file: str) -> None:
    r = config.get("r", 8)
    if type(r) is not int or not 0 < r <= 65536:
        raise InvalidPatch(f"{file}: r is {r!r}; a whole number from 1 to 65536 is expected")
    for key in ("rank_pattern", "alpha_pattern"):
        read_pattern(config.get(key) or {}, f"{file}: {key}")
    layer_ranges(config, file)
    positive(config.get("lora_alpha", 8), f"{file}: lora_alpha")
    whole(config.get("qalora_group_size", 16), f"{file}: qalora_group_size")
    blocks = config.get("use_bdlora") or {}
    if not isinstance(blocks, dict):
        raise InvalidPatch(f"{file}: use_bdlora is {str(blocks)[:80]}; an object is expected")
    whole(blocks.get("nblocks", 1), f"{file}: use_bdlora: nblocks")
    for key in ("target_modules_bd_a", "target_modules_bd_b"):
        check_modules(blocks.get(key) or [], f"{file}: use_bdlora: {key}")
    parameters = config.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(one, str) for one in parameters):
        raise InvalidPatch(f"{file}: target_parameters is {str(parameters)[:100]}; a list of names is expected")


def _rank(adapter: Adapter, path: str) -> float:
    """The rank that the configuration gives a module or parameter."""
    pattern = read_pattern(adapter.config.get("rank_pattern") or {}, CONFIG)
    return matching(pattern, path, adapter.config.get("r", 8))


def _scaling(adapter: Adapter, path: str, r: int) -> float:
    """alpha / r, or alpha / sqrt(r), of one module or parameter. Source: peft `tuners/lora/layer.py`, update_layer."""
    pattern = read_pattern(adapter.config.get("alpha_pattern") or {}, CONFIG)
    alpha = matching(pattern, path, float(adapter.config.get("lora_alpha", 8)))
    return alpha / math.sqrt(r) if adapter.config.get("use_rslora") else alpha / r


def _why_not(config: Mapping[str, Any]) -> str | None:
    """Why the tensors are no plain LoRA, None where they are."""
    if config.get("use_dora") and (config.get("use_bdlora") or config.get("use_qalora")):
        return "use_dora is set together with use_bdlora or use_qalora, and peft has no adapter of both"
    init = str(config.get("init_lora_weights")).lower()
    if init.startswith(_NOT_RECOMPUTED):
        return (
            f"init_lora_weights is {init!r}, which changed the base in training in a way that the base does not tell; "
            "save it as a plain LoRA, with peft's path_initial_model_for_weight_conversion"
        )
    if init == "loftq":
        return "init_lora_weights is 'loftq': it belongs to the quantised base that it was made with, not to this one"
    if changes_base(config) and config.get("use_dora"):
        return f"init_lora_weights is {init!r} and use_dora is set: its magnitudes are of a base that was changed"
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
    elif held_parameters(adapter, module.path):
        yield from _stacked_contradictions(adapter, module)
    elif ("d" in module.fields) != (changes_base(adapter.config) == "kasa"):
        yield f"has {'a' if 'd' in module.fields else 'no'} lora_diag, and {CONFIG} says the opposite (kasa_config)"
    elif "d" in module.fields and module.fields["d"].shape != A.shape[:1]:
        yield f"lora_diag is {module.fields['d'].shape} for a rank of {A.shape[0]}"
    elif A.shape[0] != _rank(adapter, module.path):
        yield f"its rank is {A.shape[0]}, {CONFIG} says {_rank(adapter, module.path):g} (r or rank_pattern)"
    elif adapter.config.get("use_dora") and "mag" not in module.fields:
        yield f"has no lora_magnitude_vector, and {CONFIG} says use_dora"


def _stacked_contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    ranks = {_rank(adapter, one) for one in held_parameters(adapter, module.path)}
    rows = module.fields["A"].shape[0]
    if all(rows % r for r in ranks):
        yield f"its factors have {rows} rows, no multiple of {' or '.join(f'{r:g}' for r in sorted(ranks))}"


def _ranks(adapter: Adapter, module: Module) -> int:
    held = held_parameters(adapter, module.path)
    if held:
        return int(_rank(adapter, held[0]))
    return module.fields[_factors(module)[0]].shape[0]


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One lowrank or dora term, one for what training took out of the base, and a dense one for lora_bias."""
    if held_parameters(adapter, module.path):
        yield from stacked_terms(
            adapter,
            module,
            sites,
            lambda name: int(_rank(adapter, name)),
            lambda name, r: _scaling(adapter, name, r),
        )
        return
    if expert_of(module.path, sites) is not None:
        return  # all experts of a stacked parameter are one term: `_gathered`
    kind = changes_base(adapter.config)
    if kind and sites.base is None:
        return  # the factors alone are not the delta
    A, B = _plain(adapter, module)
    site, options, scaling = _placed(adapter, module, sites)
    if "mag" in module.fields:
        fields = {"A": A, "B": B, "mag": module.fields["mag"]}
        yield SiteTerm(site, "dora", fields, options=options | {"scaling": scaling})
    else:
        diagonal = {"d": module.fields["d"]} if "d" in module.fields else {}
        yield SiteTerm(site, "lowrank", {"A": A, "B": B, **diagonal}, scaling, options)
    if kind:
        yield taken_term(kind, module.path, A.shape[0], scaling, site, options, sites)
    if "bias" in module.fields:
        bias_site = sites.bias(module.path, module.fields["bias"].shape)
        yield SiteTerm(bias_site, "dense", {"delta": module.fields["bias"]}, scaling)


def _gathered(adapter: Adapter, sites: Sites) -> Iterator[SiteTerm]:
    """Terms of experts' own modules, where the base stores the experts stacked. Raises NotFoldable for other LoRAs."""
    for found in gathered_terms(adapter, sites, lambda path, r: _scaling(adapter, path, r), _plain):
        if changes_base(adapter.config) or adapter.config.get("use_dora") or adapter.config.get("use_qalora"):
            raise NotFoldable(f"{found.site}: holds all experts, and only plain LoRAs of single ones are put into it")
        yield found


def _placed(adapter: Adapter, module: Module, sites: Sites) -> tuple[str, dict[str, Any], float]:
    """A module's site, the options of its terms, and its scaling."""
    A, B = _plain(adapter, module)
    delta = (B.shape[0], *A.shape[1:])
    site, options = sites.weight(module.path, delta, is_embedding="embedding_A" in module.fields)
    scaling = _scaling(adapter, module.path, A.shape[0])
    if adapter.config.get("use_qalora"):
        # Groups are averaged, and the averages are multiplied by the number of groups.
        groups = module.fields["A"].shape[1]
        scaling *= groups * groups / A.shape[1]
    return site, options, scaling


# ---- with the adapter as it was before training ----------------------------------------------------------------------


def read_with_initial(folder: Folder, path: str, initial: Folder, initial_path: str, base: Checkpoint | None) -> Patch:
    """The exact delta s·(B·A - B₀·A₀) of an adapter whose initialisation changed its base, against the original base.

    initial: the adapter as it was saved before training, whatever its configuration says: peft's own conversion writes
    "init_lora_weights": true there. `export` makes a plain LoRA of the result, of twice the rank. Raises InvalidPatch
    where the two do not have the same modules and shapes, and what `read` raises.
    """
    config = read_config(initial, initial_path)
    if config is None:
        raise InvalidPatch(f"{join(initial_path, CONFIG)}: missing, or no JSON object")
    start = open_adapter(initial, initial_path, config, TUNER)
    if str((read_config(folder, path) or {}).get("init_lora_weights")).lower() == "loftq":
        raise NotFoldable(f"{join(path, CONFIG)}: LoftQ's base is a quantised one: what it lacks is no product B₀·A₀")

    def terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
        before = start.modules.get(module.path)
        if before is None or {name: one.shape for name, one in before.fields.items()} != {
            name: one.shape for name, one in module.fields.items()
        }:
            raise InvalidPatch(f"{start.file}: {module.path} is missing or of other shapes than in {adapter.file}")
        if set(module.fields) != {"A", "B"}:
            raise NotFoldable(f"{adapter.file}: {module.path}: only plain factors are taken from an initial adapter")
        site, options, scaling = _placed(adapter, module, sites)
        yield SiteTerm(site, "lowrank", module.fields, scaling, options)
        yield SiteTerm(site, "lowrank", before.fields, -scaling, options)

    found = read(folder, path, base, replace(TUNER, terms=terms, why_not=lambda config: None), "lora")
    both = json_digest([found.digest, initial.digest(join(initial_path, WEIGHTS))])
    return replace(found, digest=both)


# ---- writing ---------------------------------------------------------------------------------------------------------


def export(addends: Sequence[tuple[float, Patch]], base_name: str, base: Checkpoint | None = None) -> Export:
    """The weighted sum of adapters as one, module by module as `lowrank_export` joins them; a DoRA alone stays one.

    Ranks add up and may differ by module (rank_pattern). Raises NotRepresentable for terms without an exact
    low-rank form.
    """
    pairs = pairs_of(addends, base)
    tensors = [one for pair in pairs for one in _exported(pair)]
    replications = {patch.layer_ranges for _, patch in addends}
    if len(replications) > 1:
        raise NotRepresentable("one adapter repeats layers of its base (layer_replication), another not the same ones")
    task_types = {patch.facts.detail.get("task_type") for _, patch in addends}
    config = {
        **patterns(pairs),
        "peft_type": "LORA",
        "task_type": task_types.pop() if len(task_types) == 1 else None,
        "base_model_name_or_path": base_name,
        "target_modules": [pair.module for pair in pairs],
        "fan_in_fan_out": any(pair.layer == "conv1d" for pair in pairs),
        "use_dora": is_dora(pairs),
        "layer_replication": [list(one) for one in replications.pop()] or None,
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return Export("lora", WEIGHTS, tuple(tensors), {CONFIG: config})


def _exported(pair: Pair) -> Iterator[ExportTensor]:
    key = PREFIX + pair.module + "." + ("lora_embedding_{}" if pair.layer == "embedding" else "lora_{}.weight")
    yield pair.tensor("A", key.format("A"))
    yield pair.tensor("B", key.format("B"))
    if pair.mag is not None:
        is_conv = pair.layer == "conv"
        shape = (1, pair.mag.numel, *(1 for _ in pair.shapes["A"][2:])) if is_conv else (pair.mag.numel,)
        yield copied(f"{PREFIX}{pair.module}.lora_magnitude_vector", pair.mag, shape)


TUNER = Tuner(
    peft_type="LORA",
    fields=_FIELDS,
    required=(("A", "embedding_A"), ("B", "embedding_B")),
    shown=("r", "lora_alpha", "use_rslora", "use_dora", "init_lora_weights", "layer_replication"),
    check=_check,
    contradictions=_contradictions,
    ranks=_ranks,
    why_not=_why_not,
    terms=_terms,
    together=_gathered,
    is_mine=lambda config: not any(config.get(key) for key in _OTHER_KINDS),
)

SPEC = peft_kind(
    TUNER,
    name="lora",
    title="LoRA",
    summary="Low-rank factors A and B on some modules",
    source="arXiv:2106.09685, as peft saves it",
    export=export,
    has_factors=True,
)
