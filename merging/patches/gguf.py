"""gguf: LoRA as llama.cpp's convert_lora_to_gguf.py writes it, on the architectures whose names are known here.

One .gguf file with general.type "adapter" and adapter.type "lora"; tensors `blk.N.<name>.weight.lora_a` (r, in) and
`.lora_b` (out, r), or `output.weight.…`, the delta being adapter.lora.alpha / r · B @ A. Of architecture "llama" the
rows of q and k are in llama.cpp's rotary order, which the base's numbers of heads undo: so it is read and written with
its base.

Source: ggml-org/llama.cpp convert_lora_to_gguf.py, convert_hf_to_gguf.py (LlamaModel.permute); gguf-py constants.py.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle
from adapterhub.merging.encodings import as_floats
from adapterhub.merging.errors import BrokenContainer, InvalidPatch, NotFoldable, NotRepresentable, ShapeMismatch
from adapterhub.merging.folders import json_digest
from adapterhub.merging.gguf import Gguf, open_gguf
from adapterhub.merging.lowrank_export import Pair, pairs_of
from adapterhub.merging.patch import Export, Facts, Patch, PatchKind, SiteTerm, TrainingBase
from adapterhub.merging.peft_adapter import floats
from adapterhub.merging.sites import layers_of, naming, targets_of

_ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False, "gemma": False, "gemma2": False, "gemma3": False}
"""By general.architecture: whether llama.cpp reorders the rows of q and k."""

_MODULES: Mapping[str, str] = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(?P<layer>\d{1,5})\.(?P<name>\w+)|output)\.weight\.lora_(?P<factor>[ab])")
_OUTPUT = "lm_head"
_MODULE = re.compile(r"(?:.*\.)?layers\.(?P<layer>\d{1,5})\.(?P<name>\w+\.\w+)")

_MODEL_TYPES: Mapping[str, str] = {
    "mistral": "llama",
    "gemma3_text": "gemma3",
    **{name: name for name in _ARCHITECTURES if name != "gemma3"},
}
"""llama.cpp's architecture by the base's model_type."""

_WEIGHTS = "adapter.gguf"


def _open(folder: Folder, path: str) -> tuple[str, Gguf] | None:
    for name in folder.names():
        if name.rpartition("/")[0] == path and name.endswith(".gguf"):
            try:
                found = open_gguf(folder, name)
            except BrokenContainer:
                continue  # a model's file, quantised or with a long vocabulary
            if found.pairs.get("general.type") == "adapter":
                return name, found
    return None


def _modules(file: str, found: Gguf) -> tuple[dict[str, dict[str, TensorHandle]], tuple[str, ...]]:
    """A and B by module, and what is wrong with the file."""
    problems = []
    architecture, alpha = found.pairs.get("general.architecture"), found.pairs.get("adapter.lora.alpha")
    if found.pairs.get("adapter.type") != "lora":
        problems.append(f"{file}: adapter.type is {str(found.pairs.get('adapter.type'))[:60]!r}; 'lora' is expected")
    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        problems.append(f"{file}: general.architecture is {str(architecture)[:60]!r}; {known} are merged here")
    if not isinstance(alpha, float) or not 0 < alpha < math.inf:
        problems.append(f"{file}: adapter.lora.alpha is {alpha!r}; a number above 0 is expected")
    modules: dict[str, dict[str, TensorHandle]] = {}
    for name, handle in found.tensors.items():
        matched = _NAME.fullmatch(name)
        if matched is None or (matched["name"] is not None and matched["name"] not in _MODULES):
            problems.append(f"{file}: tensor {name[:200]} is no factor of {', '.join(_MODULES)}")
            continue
        is_output = matched["name"] is None
        module = _OUTPUT if is_output else f"model.layers.{matched['layer']}.{_MODULES[matched['name']]}"
        modules.setdefault(module, {})[matched["factor"].upper()] = handle
    for module, fields in modules.items():
        A, B = fields.get("A"), fields.get("B")
        if A is None or B is None or len(A.shape) != 2 or len(B.shape) != 2 or A.shape[0] != B.shape[1]:
            shapes = {name: one.shape for name, one in fields.items()}
            problems.append(f"{file}: {module}: {shapes}; A (r, in) and B (out, r) are expected")
    return modules, tuple(problems)


def recognise(folder: Folder, path: str) -> Facts | None:
    """Facts of a GGUF adapter, from its header. The first by name of a folder."""
    opened = _open(folder, path)
    if opened is None:
        return None
    file, found = opened
    modules, problems = _modules(file, found)
    ranks = [one["A"].shape[0] for one in modules.values() if "A" in one and one["A"].shape]
    is_alora = "adapter.alora.invocation_tokens" in found.pairs
    if is_alora:
        problems = (*problems, f"{file}: an activated LoRA, which acts after its invocation tokens alone")
    dtypes: Counter[str] = Counter()
    for handle in found.tensors.values():
        dtypes[handle.dtype] += handle.numel
    return Facts(
        kind="gguf",
        reason=f"{file} says general.type 'adapter'",
        path=path,
        files=(file,),
        base=TrainingBase(),
        rank_min=min(ranks, default=None),
        rank_max=max(ranks, default=None),
        targets=targets_of(modules),
        layers=layers_of(modules),
        parameter_count=dtypes.total(),
        dtypes=dict(dtypes),
        size_bytes=folder.size(file),
        detail={key: found.pairs.get(key) for key in ("general.architecture", "adapter.lora.alpha", "general.name")},
        problems=problems,
    )


def _unpermuted(B: TensorHandle, heads: int) -> TensorHandle:
    """B with its rows as transformers has them: llama.cpp keeps each head's pairs of rotated rows side by side."""

    def make() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        values = as_floats(B)
        return values.reshape(heads, -1, 2, B.shape[1]).swapaxes(1, 2).reshape(B.shape)

    return floats(B.name, B.shape, make)


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """The adapter as lowrank terms. Raises InvalidPatch, NotFoldable, UnknownSite, ShapeMismatch."""
    facts, opened = recognise(folder, path), _open(folder, path)
    if facts is None or opened is None or facts.problems:
        raise InvalidPatch(facts.problems[0] if facts else f"{path or 'the root folder'}: no GGUF adapter lies here")
    file, found = opened
    modules, _ = _modules(file, found)
    is_permuted = _ARCHITECTURES[found.pairs["general.architecture"]]
    if is_permuted and base is None:
        raise NotFoldable(f"{file}: the rows of q and k are in llama.cpp's order; name the base, whose heads undo it")
    names = naming([f"{module}.weight" for module in modules], base) if base else None
    terms = []
    for module, fields in modules.items():
        A, B = fields["A"], fields["B"]
        site = names.site(f"{module}.weight") if names else f"{module}.weight"
        if base is not None and base.tensors[site].shape != (B.shape[0], A.shape[1]):
            raise ShapeMismatch(site, (B.shape[0], A.shape[1]), base.name, base.tensors[site].shape)
        if is_permuted and base is not None and module.endswith(("q_proj", "k_proj")):
            B = _unpermuted(B, _heads(base, module, B.shape[0]))
        options = {"module": module, "layer": "linear", "transpose": False}
        scale = float(found.pairs["adapter.lora.alpha"]) / A.shape[0]
        terms.append(SiteTerm(site, "lowrank", {"A": A, "B": B}, scale, options))
    digest = json_digest({"kind": "gguf", "weights": folder.digest(file)})
    return Patch(facts, digest, tuple(sorted(terms, key=lambda term: term.site)))


def _heads(base: Checkpoint, module: str, rows: int) -> int:
    heads = base.config.get("num_attention_heads")
    if module.endswith("k_proj"):
        heads = base.config.get("num_key_value_heads") or heads
    if type(heads) is not int or heads <= 0 or rows % (2 * heads):
        raise NotFoldable(f"{module}: config.json of base {base.name!r} says {heads!r} heads for {rows} rows")
    return heads


# ---- writing ---------------------------------------------------------------------------------------------------------


def export(addends: Sequence[tuple[float, Patch]], base_name: str, base: Checkpoint | None) -> Export:
    """The weighted sum of adapters as one, rows of q and k in the order that llama.cpp has for the base's architecture.

    The file has one alpha: the most common; what other modules scale by goes into their B, in float32. Raises
    NotRepresentable for terms without a low-rank form, DoRA, modules that have no name there, tied embeddings and
    architectures other than those that are read.
    """
    if base is None:
        raise NotRepresentable("gguf: the order of rows depends on the base's heads: name it with --base FOLDER")
    architecture = _MODEL_TYPES.get(str(base.config.get("model_type")))
    if architecture is None:
        known = ", ".join(_MODEL_TYPES)
        raise NotRepresentable(f"gguf: base {base.name!r} is {base.config.get('model_type')!r}; {known} are written")
    named = sorted(((_tensor_name(pair, base), pair) for pair in pairs_of(addends, base)), key=lambda one: one[0])
    alphas = [pair.alpha for _, pair in named]
    alpha = max(alphas, key=alphas.count)
    tensors = []
    for (layer, place), pair in named:
        name = f"blk.{layer}.{list(_MODULES)[place]}.weight" if place < len(_MODULES) else "output.weight"
        is_rotated = _ARCHITECTURES[architecture] and pair.module.endswith(("q_proj", "k_proj"))
        rows = _permuted(pair.shapes["B"][0], _heads(base, pair.module, pair.shapes["B"][0])) if is_rotated else ()
        tensors.append(pair.tensor("A", f"{name}.lora_a"))
        tensors.append(pair.tensor("B", f"{name}.lora_b", unit=alpha / pair.r, rows=rows))
    told = {"general.architecture": architecture, "general.type": "adapter", "adapter.type": "lora"}
    return Export("gguf", _WEIGHTS, tuple(tensors), {}, pairs={**told, "adapter.lora.alpha": float(alpha)})


def _tensor_name(pair: Pair, base: Checkpoint) -> tuple[int, int]:
    """The layer and the place among _MODULES of a module, past them all for the output. Raises NotRepresentable."""
    if pair.mag is not None:
        raise NotRepresentable(f"{pair.module}: is a DoRA, and GGUF has no magnitudes; convert it to dense instead")
    if pair.module == _OUTPUT:
        if f"{_OUTPUT}.weight" not in base.tensors:
            raise NotRepresentable(f"{_OUTPUT}: base {base.name!r} ties it to its input embedding, as llama.cpp does")
        return 1 << 20, len(_MODULES)
    matched = _MODULE.fullmatch(pair.module)
    names = list(_MODULES.values())
    if matched is None or matched["name"] not in names or pair.layer != "linear":
        raise NotRepresentable(f"{pair.module}: no tensor of a GGUF adapter; {', '.join(names)} and {_OUTPUT} are")
    return int(matched["layer"]), names.index(matched["name"])


def _permuted(rows: int, heads: int) -> list[int]:
    """Which row of transformers stands at each row of llama.cpp. Source: convert_hf_to_gguf.py, LlamaModel.permute."""
    order: list[int] = np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1).tolist()
    return order


SPEC = PatchKind(
    name="gguf",
    title="GGUF LoRA",
    summary="LoRA in llama.cpp's file format",
    source="llama.cpp convert_lora_to_gguf.py",
    recognise=recognise,
    read=read,
    export=export,
    family="llama.cpp",
    has_factors=True,
)
