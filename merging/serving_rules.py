"""What engines outside do with the parts of an adapter, as data: rules by version, each with what its source says.

A `ServingEngine` is one file of `serveable/`. `serving_features.py` finds a patch's features, `serveability.py` asks
these rules; what has no rule is applied. Never imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from adapterhub.merging.errors import UnknownEngine

if TYPE_CHECKING:
    from adapterhub.merging.checkpoint import Checkpoint
    from adapterhub.merging.patch import Patch

Does = Literal["applies", "refuses", "ignores", "misapplies"]
"""What an engine does with a file as it is: it serves what was meant, says no, serves the base, or something else."""

WORST: Sequence[Does] = ("applies", "refuses", "ignores", "misapplies")
"""From the harmless to what nobody notices."""

FEATURES: Mapping[str, str] = {
    "kind": "a patch that is no LoRA as peft saves it",
    "run_time": "a patch that acts at run time and has no form as weights",
    "activated": "a LoRA that acts after its invocation tokens alone (aLoRA)",
    "training": "tensors that only further training needs",
    "dora": "DoRA's magnitudes (use_dora)",
    "lora_bias": "a bias of lora_B (lora_bias)",
    "bias": "biases of the base that were trained too (bias)",
    "saved": "whole modules in place of the base's (modules_to_save)",
    "saved_in_layer": "whole modules of a layer in place of the base's (modules_to_save)",
    "head": "a classifier's head among modules_to_save",
    "copy": "a copy of the base's embedding in the layer that adapts it (base_layer)",
    "whole_copy": "an embedding saved whole beside the adapter",
    "rows": "rows of an embedding in place of the base's (trainable_token_indices)",
    "unused": "settings of tensors that the file does not hold (bias, modules_to_save, lora_bias)",
    "rslora": "a scale of alpha / sqrt(r) (use_rslora)",
    "rank_pattern": "ranks that differ by module (rank_pattern)",
    "alpha_pattern": "alphas that differ by module (alpha_pattern)",
    "base_changed": "an initialisation that took a part out of the base (PiSSA, OLoRA, CorDA, KaSA, LoftQ, ...)",
    "base_gradients": "a base that was changed by its gradients for the time of training (LoRA-GA)",
    "replication": "layers of the base that are repeated (layer_replication)",
    "blocks": "factors stored as the blocks of a diagonal (use_bdlora)",
    "groups": "an A for groups of inputs (use_qalora)",
    "stacked_experts": "one adapter of all experts of a layer (target_parameters)",
    "single_experts": "adapters of single experts",
    "some_experts": "adapters of some of a layer's experts, or of some of an expert's projections",
    "embedding": "an adapter of the input or output embedding",
    "layer": "an adapter of a layer that is neither linear nor an embedding",
    "architecture": "a model that takes no adapters",
    "prefix": "modules called otherwise than the base calls them",
    "module": "a module that the model does not have",
    "odd": "a module of a name that the engine does not know",
    "fused": "one adapter of q, k and v (gate and up) that the base stores apart",
    "split": "adapters of q, k and v (gate and up) apart that the base stores as one",
    "lone": "adapters of some of q, k and v (gate and up) and not of the others",
    "regex": "target_modules as a pattern",
    "rank": "a rank above the engine's largest",
}
"""All that a rule may be of."""


@dataclass(frozen=True)
class Rule:
    """What an engine does with a feature, in its versions from `since` on and before `until`; "" is open."""

    feature: str
    does: Does
    why: str
    since: str = ""
    until: str = ""


@dataclass(frozen=True)
class Modules:
    """The modules that a patch adapts, for rules of an engine's own.

    names: of peft's paths, with the layer ("linear", "embedding", "conv", ...) and the rank of each. base: None where
    it was not named.
    """

    names: Mapping[str, tuple[str, int]]
    base: Checkpoint | None


Found = tuple[str, str, str]
"""A module, a feature of it, and what it is rewritten to: "" where nothing does."""


def _nothing(modules: Modules, version: str) -> Iterator[Found]:
    return iter(())


@dataclass(frozen=True)
class ServingEngine:
    """One engine that serves adapters beside a base.

    form: the kind of patch that it loads. tested: the version whose own loader the tests ask; "" where none is.
    known: the oldest version whose source was read. rules: of features; the first that fits a version counts.
    looks: `(modules, version)` gives features of single modules that only this engine has.
    ranks: the values that its largest rank may have; () for any. whole: groups of modules of one parent of which it
    takes all or none, but for those of `spare`; whole_experts: whether all experts of a layer, with all their
    projections, are such a group.
    options: what to start it with, for a largest rank. answers: `(patch, base)` gives why a term of the patch has no
    place in `form`, by site; for forms other than peft's.
    """

    name: str
    title: str
    source: str
    form: Literal["lora", "gguf"]
    tested: str
    known: str
    rules: tuple[Rule, ...]
    looks: Callable[[Modules, str], Iterator[Found]] = _nothing
    ranks: tuple[int, ...] = ()
    whole: tuple[tuple[str, ...], ...] = ()
    spare: frozenset[str] = frozenset()
    whole_experts: bool = False
    options: Callable[[int], Sequence[str]] = lambda rank: ()
    answers: Callable[[Patch, Checkpoint | None], Mapping[str, str]] | None = None

    def rule(self, feature: str, version: str) -> Rule | None:
        """The rule of a feature in a version; None where the engine applies it."""
        fitting = (one for one in self.rules if one.feature == feature and _within(version, one.since, one.until))
        return next(fitting, None)

    def doubt(self, version: str) -> str:
        """What is not sure about the rules at this version; "" where they are tested against it."""
        if version and version == self.tested:
            return ""
        if not self.tested:
            return (
                f"the rules of {self.title} are what its documentation and source say; none of its versions was asked"
            )
        if _number(version) < _number(self.known):
            return f"{self.title} {version} is older than {self.known}, the oldest whose source was read"
        return f"the rules were tested against {self.title} {self.tested} alone; for {version} its source was read"


def asked(text: str, known: Mapping[str, ServingEngine]) -> tuple[ServingEngine, str]:
    """The engine and the version of "name@version"; without a version, the one that is tested.

    Raises UnknownEngine, which names a near one, and for a version that is no number.
    """
    name, _, version = text.partition("@")
    if name not in known:
        near = get_close_matches(name.lower(), known, 1, 0.4)
        raise UnknownEngine(name, f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}")
    engine = known[name]
    version = version.removeprefix("v") or engine.tested
    if version and not _number(version):
        raise UnknownEngine(text, f"a version is a number, as in {name}@{engine.tested or 'b6000'}")
    return engine, version


def table(engine: ServingEngine) -> str:
    """The engine's rules for docs/serveable.md: what it does with files as they are."""
    text = "| of a patch | versions | as it is | because |\n|---|---|---|---|\n"
    for rule in engine.rules:
        if rule.does != "applies":
            since, until = rule.since and f"from {rule.since}", rule.until and f"before {rule.until}"
            versions = " ".join(filter(None, (since, until))) or "all"
            newer = [one for one in engine.rules if one.feature == rule.feature and one.since and not rule.since]
            versions = f"before {newer[0].since}" if newer else versions
            text += f"| {FEATURES[rule.feature]} | {versions} | {rule.does} | {rule.why} |\n"
    return text


def _within(version: str, since: str, until: str) -> bool:
    here = _number(version)
    return (not since or here >= _number(since)) and (not until or here < _number(until))


def _number(version: str) -> tuple[int, ...]:
    """The numbers of "0.33.1" and of "b6000"; () of what is no version."""
    found = re.match(r"b?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, found[1].split("."))) if found else ()
