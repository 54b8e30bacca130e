"""What a patch is, as data: terms on sites, the base they were trained on, and what is known without reading weights.

Nothing here reads a tensor: values are `TensorHandle`s, names and numbers. The arithmetic of a term is the file of that
name in `terms/`; the file formats are the files in `patches/`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle

Effect = Literal["additive", "affine", "replace", "runtime"]
"""What the patch as a whole does to a base: adds a delta, acts on W, replaces values, or works only at run time."""

NOT_FOLDABLE = "not_foldable"
"""Key of `Facts.detail`: why a patch that becomes weights of other bases does not of the one it was read with."""


@dataclass(frozen=True)
class SiteTerm:
    """One term on one site: what a patch does to one named parameter of its base.

    site: the parameter's name in the base's checkpoint when the patch was read with a base, else the module path that
    the patch itself names, with ".weight" or ".bias".
    term: key of the term registry ("lowrank", "sparse", "mask", "dense", "replace", ...).
    fields: the term's tensors by field name, as the term's docstring lists them.
    scale: factor on the term's effect; 1.0 leaves it as stored.
    options: whatever else the term's docstring asks for; JSON values only.
    """

    site: str
    term: str
    fields: Mapping[str, TensorHandle]
    scale: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingBase:
    """The base a patch was trained on, as far as its files tell.

    name, revision: what the files declare, as found ("org/base", "main"); None where they are silent.
    fingerprint: root digest of the base's tensors ("sha256:<hex>"), when the files carry it.
    quantisation: "none", "nf4", "int8", "fp8", ... or "unknown".
    recipe: the expression that makes the base, where it is no stored model. requires: patches that must be folded with
    this one where the base's values do not have them already: how they are called, by digest.
    """

    name: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    quantisation: str = "unknown"
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Digests of the touched parameters by name, when the files carry them."""
    recipe: str | None = None
    requires: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What is known of a patch or model from names, configurations and headers alone.

    kind: key of the patch-kind registry ("lora", "sparse", "mask", "model", ...); "unknown" where none recognised it.
    reason: one sentence why it is that kind, naming the file and key that decided.
    path: folder of the patch inside its repository, "" for the root.
    files: the files that make the patch, by path inside the repository.
    rank_min, rank_max: of its low-rank terms; None without any.
    targets: module types it touches ("q_proj", "mlp.down_proj"), sorted.
    layers: number of touched sites by layer index, "-" for sites outside layers.
    parameter_count: numbers stored; dtypes: numbers stored by safetensors dtype; size_bytes: of the weight files.
    contract: what it needs to work besides its base: chat template, pattern, tokens, label map, ... training: how it
    was made: method, data, cost, energy. parts: names of what can be had alone, for `native.read_patch`.
    problems: sentences, each naming file, tensor and cure; a patch with problems is not fit to merge. warnings: what
    looks like a mistake and keeps nothing from being merged.
    """

    kind: str
    reason: str
    path: str = ""
    files: tuple[str, ...] = ()
    effect: Effect = "additive"
    base: TrainingBase = TrainingBase()
    rank_min: int | None = None
    rank_max: int | None = None
    targets: tuple[str, ...] = ()
    layers: Mapping[str, int] = field(default_factory=dict)
    parameter_count: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)
    """More of the kind's own facts (alpha, density, architecture, ...), JSON values only, shown as they are."""
    contract: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Patch:
    """A patch that was read: its facts and its terms, values still on disk.

    digest: "sha256:<hex>" over the kind, the canonical configuration and the digests of the weight files.
    """

    facts: Facts
    digest: str
    terms: tuple[SiteTerm, ...]
    layer_ranges: tuple[tuple[int, int], ...] = ()
    """Which layers of its base it repeats, as `replicas.py` has them: its sites are those of the longer model."""


@dataclass(frozen=True)
class ExportTensor:
    """One tensor of a patch to be written: one side of the exact low-rank form of several terms, joined.

    factor: "A" (r, in) or "B" (out, r), reshaped to `shape` once they are joined along the ranks. parts: (weight,
    term); the factor weight times the term's scale goes into B, computed in float32. is_transposed: whether the site
    stores (in, out). stored: a tensor whose bytes are written as they are, instead of parts. rows: the order in which
    its rows are written, () for their own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    factor: Literal["A", "B"]
    parts: tuple[tuple[float, SiteTerm], ...]
    is_transposed: bool
    stored: TensorHandle | None = None
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Export:
    """A sum of patches as one patch of some kind: what to write, values still to be computed.

    weights: name of the file of weights: GGUF where it has `pairs`, texts and floats by key, else safetensors with this
    metadata. tensors: in it, in GGUF in this order. files: JSON files beside it, by name.
    """

    kind: str
    weights: str
    tensors: tuple[ExportTensor, ...]
    files: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    pairs: Mapping[str, str | float] = field(default_factory=dict)


Exporter = Callable[[Sequence[tuple[float, Patch]], str, Checkpoint | None], Export]
"""What writes a weighted sum of patches as one of a kind; see PatchKind."""


@dataclass(frozen=True)
class PatchKind:
    """One file format in which people store patches or models.

    recognise: the facts of what lies in a folder of the repository, from names, configurations and headers alone; None
    when it is not of this kind. What contradicts itself is recognised, with the contradiction among its problems.
    read: the patch itself; with a base, sites carry the base's names and every shape is checked. Raises InvalidPatch,
    NotFoldable, UnknownSite or ShapeMismatch. The folder's own path inside the repository is the second argument.
    export: the weighted sum of patches that were read with one base, as one exact patch of this kind; the other
    arguments are the base's repository and the base, which may be None. Raises NotRepresentable, also where the base is
    needed and not there. None where the kind has no such form.
    rebase: the metadata files of a patch, by path, as they read once it belongs to another base; weights are not among
    them. None where no file of the kind names a base.
    family: whose format it is, for lists: "peft", "native", ... folds: "own" where its terms are computed here, "peft"
    where peft itself folds it on a skeleton of the touched sites, "no" where it cannot become weights; such a patch has
    no terms and the effect "runtime", or `read` raises NotFoldable with the reason. has_factors: whether its terms have
    exact low-rank factors, bias and whole modules aside, so that it converts to what holds such.
    """

    name: str
    title: str
    summary: str
    source: str
    recognise: Callable[[Folder, str], Facts | None]
    read: Callable[[Folder, str, Checkpoint | None], Patch]
    export: Exporter | None = None
    rebase: Callable[[Folder, str, TrainingBase], Mapping[str, bytes]] | None = None
    family: str = "native"
    folds: Literal["own", "peft", "no"] = "own"
    has_factors: bool = False
