"""The sites of a base by the names that patches use: prefixes, tied embeddings, Conv1D, and facts from names alone."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.errors import InvalidPatch, UnknownSite

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "shared.weight")
"""Last parts of an input embedding's name."""

_OUTPUTS = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight", "lm_head.decoder.weight")
"""Names of the weight that turns hidden states into logits."""

_OUTPUT_BIASES = ("lm_head.bias", "embed_out.bias", "cls.predictions.bias", "cls.predictions.decoder.bias")
"""Names of what is added to logits."""

_CONV1D_MODEL_TYPES = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}
_CONV1D_MODULES = {"c_attn", "c_proj", "c_fc", "q_attn"}
"""Where transformers uses its Conv1D, whose weight is stored (in, out)."""

_ATTENTION = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)
_VIT = (
    ("encoder.layer", "layers"),
    *_ATTENTION,
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)
_VIT_TYPES = ("vit", "deit", "vit_mae", "vit_msn", "ijepa", "vivit", "audio-spectrogram-transformer")

_RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(_VIT_TYPES, _VIT),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _ATTENTION),
}
"""By model type: (part of a stored name, what it is called in the live model).

transformers 5 renames modules while it loads and names them back while it saves, so an adapter carries live names and
its base's checkpoint stored ones. Source: transformers 5.23 `conversion_mapping.py`, WeightRenaming.
"""


def stored_name(name: str, model_type: object) -> str:
    """The name under which a live model's parameter is stored; names that are stored ones already stay."""
    for stored, live in _RENAMED.get(str(model_type), ()):
        name = re.sub(rf"(?<![^.]){re.escape(live)}(?![^.])", stored, name)
    return name


def live_name(name: str, model_type: object) -> str:
    """The name that a stored parameter has in the live model of transformers 5."""
    for stored, live in _RENAMED.get(str(model_type), ()):
        name = re.sub(rf"(?<![^.]){re.escape(stored)}(?![^.])", live, name)
    return name


@dataclass(frozen=True)
class Naming:
    """How the names of one patch become those of its base: a first part taken off, put before, or neither.

    A patch trained on a task model says "bert.encoder.x" where the checkpoint of the bare model says "encoder.x", and
    the other way round. Live names of renamed modules are understood besides.
    """

    base: Checkpoint
    strip: str = ""
    add: str = ""

    def find(self, name: str) -> str | None:
        """The base's name of the parameter, None where it has none. A name that fits as it is stays."""
        for spelled in (name, stored_name(name, self.base.config.get("model_type"))):
            for candidate in (spelled, self.add + spelled.removeprefix(self.strip)):
                if candidate in self.base.tensors:
                    return candidate
        return None

    def site(self, name: str) -> str:
        """The base's name of the parameter. Raises UnknownSite."""
        found = self.find(name)
        if found is None:
            raise UnknownSite(name, self.base.name)
        return found


def naming(names: Iterable[str], base: Checkpoint) -> Naming:
    """The one naming under which most of `names` are parameters of the base; as they are, where that is as good.

    Raises InvalidPatch when two prefixes fit equally well.
    """
    wanted = list(names)
    prefixes = {name.partition(".")[0] + "." for name in base.tensors if "." in name}
    firsts = {name.partition(".")[0] + "." for name in wanted if "." in name}
    candidates = [Naming(base)]
    candidates += [Naming(base, strip=first) for first in sorted(firsts)]
    candidates += [Naming(base, add=prefix) for prefix in sorted(prefixes)]
    counts = [sum(one.find(name) is not None for name in wanted) for one in candidates]
    best = max(counts)
    if counts[0] == best:
        return candidates[0]
    winners = [one for one, count in zip(candidates, counts, strict=True) if count == best]
    if len(winners) > 1:
        shown = " and ".join(one.add or one.strip for one in winners[:2])
        raise InvalidPatch(f"{wanted[0]}: base {base.name!r} has it below {shown}; name parameters as the base does")
    return winners[0]


@dataclass(frozen=True)
class Tie:
    """Input and output embedding that share one tensor, which the checkpoint stores once, under `stored`.

    output: the name that the output embedding has in a checkpoint where the two are apart.
    """

    stored: str
    output: str


def tie_of(base: Checkpoint) -> Tie | None:
    """The tied embeddings of a language model; None where both are stored, or the model has no such output.

    Decided by the architecture and by which tensors are there: configurations leave `tie_word_embeddings` out where it
    is the model type's default.
    """
    architecture = next(iter(base.config.get("architectures") or [""]), "")
    stored = [name for name in base.tensors if name.endswith(_EMBEDDINGS)]
    is_language_model = architecture.endswith(("LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForConditionalGeneration"))
    is_apart = any(name.endswith(_OUTPUTS) for name in base.tensors)
    if not is_language_model or is_apart or len(stored) != 1 or base.config.get("tie_word_embeddings") is False:
        return None
    if architecture.endswith("ForMaskedLM"):
        is_roberta = "roberta" in str(base.config.get("model_type"))
        return Tie(stored[0], "lm_head.decoder.weight" if is_roberta else "cls.predictions.decoder.weight")
    return Tie(stored[0], "lm_head.weight")


def is_input_embedding(name: str) -> bool:
    """Whether a parameter's name is that of an input embedding, which has a row a token."""
    return name.endswith(_EMBEDDINGS)


def is_output_embedding(name: str) -> bool:
    """Whether a parameter's name is that of an output embedding."""
    return name.endswith(_OUTPUTS)


def is_embedding(name: str) -> bool:
    """Whether a parameter's name is that of an input or output embedding."""
    return name.endswith(_EMBEDDINGS + _OUTPUTS)


def has_row_for_each_token(name: str) -> bool:
    """Whether a parameter's name is that of an input or output embedding, or of the latter's bias."""
    return is_embedding(name) or name.endswith((*_OUTPUT_BIASES, "lm_head.decoder.bias"))


def is_conv1d(module: str, base: Checkpoint) -> bool | None:
    """Whether the module's weight is stored (in, out), as transformers' Conv1D does; None where no one says."""
    model_type = base.config.get("model_type")
    if not model_type:
        return None
    return model_type in _CONV1D_MODEL_TYPES and module.rpartition(".")[2] in _CONV1D_MODULES


def layer_of(site: str) -> str:
    """The layer's index as text, "-" outside layers: the first part of the name that is a number."""
    return next((part for part in site.split(".") if part.isdigit()), "-")


def layers_of(sites: Iterable[str]) -> Mapping[str, int]:
    """Number of sites by layer index, in the order of the layers, "-" last."""
    counts = Counter(layer_of(site) for site in set(sites))
    return dict(sorted(counts.items(), key=lambda item: (item[0] == "-", len(item[0]), item[0])))


def targets_of(sites: Iterable[str]) -> tuple[str, ...]:
    """The module types among the sites ("q_proj", "c_attn"), sorted."""
    modules = (site.removesuffix(".weight").removesuffix(".bias") for site in sites)
    return tuple(sorted({module.rpartition(".")[2] for module in modules}))


def depths(sites: Iterable[str]) -> dict[str, float]:
    """l / (L - 1) of each site in layer l of L, 1 where there is one layer; sites outside layers are left out.

    Layers are counted from the first that is there.
    Each list of layers counts for itself: an encoder's and a decoder's both go from 0 to 1.
    """
    places = {}
    for site in sites:
        number = layer_of(site)
        if number != "-":
            places[site] = site.partition(f".{number}.")[0], int(number)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for before, place in places.values():
        first[before] = min(first.get(before, place), place)
        last[before] = max(last.get(before, place), place)
    spans = {before: last[before] - first[before] for before in first}
    return {
        site: (place - first[before]) / spans[before] if spans[before] else 1.0
        for site, (before, place) in places.items()
    }
