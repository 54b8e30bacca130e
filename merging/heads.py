"""Heads of a task: which parameters they are, whose they are, and what becomes of several in one result.

Two tasks' heads mean different things at the same place, so their mean is no head of either: a recipe whose inputs have
heads of their own is refused until it says what it wants. Never imports torch.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.contracts import contract_of
from adapterhub.merging.errors import BaseMismatch, NotRepresentable, ShapeMismatch, UnknownSite
from adapterhub.merging.folders import join, read_json
from adapterhub.merging.patch import Patch, SiteTerm
from adapterhub.merging.recipes.canonical import MODEL, Input
from adapterhub.merging.recipes.head_policy import CHOICES, Heads
from adapterhub.merging.recipes.nodes import Ref
from adapterhub.merging.steps import OutputTensor

_HEAD = re.compile(r"(?:^|\.)(?:classifier|score|qa_outputs|classification_head|pre_classifier)\.")
"""Heads by their names in transformers' models for sequences, tokens, questions and images. A language model's head
is none: all its tunings predict the same tokens."""

LABELS = ("id2label", "label2id", "num_labels", "problem_type")
"""Keys of config.json that belong to a head."""


@dataclass(frozen=True)
class Head:
    """One input's head as a patch on the result. name: of its folder; labels: names of classes by number."""

    name: str
    terms: tuple[SiteTerm, ...]
    labels: Mapping[str, str] | None


@dataclass(frozen=True)
class Outcome:
    """What becomes of the heads in one merge.

    chosen: the policy, None where nobody has one, since no two heads differ. beside: heads that are written beside the
    result. placed: the head that goes into it, none where it is the base's. owner: the patch and input that it is of.
    """

    chosen: Heads | None = None
    beside: tuple[Head, ...] = ()
    placed: tuple[SiteTerm, ...] = ()
    owner: tuple[Patch, Input] | None = None

    @classmethod
    def of(
        cls,
        chosen: Heads | None,
        read: Mapping[Ref, Patch],
        used: Mapping[Ref, Patch],
        inputs: Mapping[Ref, Input],
        base: Checkpoint,
    ) -> Self:
        """read: of all inputs; used: of those that are summed, without the base.

        Raises BaseMismatch for heads that differ and no policy, NotRepresentable for one that cannot stand beside the
        base's.
        """
        if chosen is None:
            check(used, inputs, base)
            return cls()
        patch = read.get(chosen.of) if chosen.of is not None else None
        return cls(
            chosen,
            several(used, inputs, base) if chosen.choice == "multi" else (),
            () if patch is None else tuple(term for term in patch.terms if is_head(term)),
            None if patch is None or chosen.of is None else (patch, inputs[chosen.of]),
        )

    def sums(self, read: Mapping[Ref, Patch], *, is_patch: bool) -> dict[Ref, Patch]:
        """The patches to sum: without heads, but that a result that is a patch takes the kept one from its own."""
        if self.chosen is None:
            return dict(read)
        stays = self.chosen.of if is_patch else None
        return {ref: patch if ref == stays else without_head(patch) for ref, patch in read.items()}

    def labelled(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The result's configuration with the labels of the head that is put in."""
        return dict(config) if self.owner is None else labelled(config, *self.owner)


def is_head(term: SiteTerm) -> bool:
    """Whether a term puts a whole head of a task in place."""
    return term.term == "replace" and (bool(term.options.get("create")) or _HEAD.search(term.site) is not None)


def check(read: Mapping[Ref, Patch], inputs: Mapping[Ref, Input], base: Checkpoint) -> None:
    """Raises BaseMismatch where the inputs in use have different heads or names of classes at one place.

    A model's head is its own where its labels are not the base's. A patch's head is its own unless all who have one
    state the same label_map. read: of the inputs in use, without the base.
    """
    stated = _labels_of_config(base.config)
    owners: dict[str, list[tuple[Ref, Any]]] = {}
    for ref, patch in read.items():
        labels = _labels(patch, inputs[ref])
        if inputs[ref].kind == MODEL and labels in (None, stated):
            continue
        for site in sorted({term.site for term in patch.terms if is_head(term)}):
            owners.setdefault(site, []).append((ref, labels))
    for site, found in owners.items():
        _check_site(site, found, inputs, base, stated)


def _check_site(
    site: str, found: Sequence[tuple[Ref, Any]], inputs: Mapping[Ref, Input], base: Checkpoint, stated: Any
) -> None:
    told = sorted(((inputs[ref].name.partition("@")[0], labels) for ref, labels in found), key=lambda one: one[0])
    if any(inputs[ref].kind == MODEL for ref, _ in found) and site in base.tensors:
        told.insert(0, (base.name.partition("@")[0], stated))
    if len(told) < 2 or (told[0][1] is not None and all(labels == told[0][1] for _, labels in told)):
        return
    names = " and ".join(f"{name} ({_told(labels)})" for name, labels in told)
    raise BaseMismatch(f"{site}: {names} each have a head of their own, whose mean is a head of neither; say {CHOICES}")


def without_head(patch: Patch) -> Patch:
    """The patch but for its head."""
    return replace(patch, terms=tuple(term for term in patch.terms if not is_head(term)))


def several(used: Mapping[Ref, Patch], inputs: Mapping[Ref, Input], base: Checkpoint) -> tuple[Head, ...]:
    """The head of every input that has one. Raises NotRepresentable for one that does not go on the base's place."""
    found: dict[str, Head] = {}
    for ref, patch in used.items():
        terms = tuple(term for term in patch.terms if is_head(term))
        name = (ref.path or ref.name).rpartition("/")[2]
        name = name if name not in found else f"{name}-{len(found) + 1}"
        for term in terms:
            here, shape = base.tensors.get(term.site), term.fields["value"].shape
            if here is None or here.shape != shape:
                size = "does not have it" if here is None else f"has {here.shape}"
                raise NotRepresentable(
                    f"heads=multi: {ref} brings {term.site} {shape}, and the base {size}; a head is served in place "
                    f"of the base's, of its size: say heads=keep:{ref}, or drop"
                )
        if terms:
            found[name] = Head(name, terms, _labels(patch, inputs[ref]))
    return tuple(found.values())


def with_head(outputs: Iterable[OutputTensor], head: Iterable[SiteTerm]) -> tuple[OutputTensor, ...]:
    """The tensors of a result with a whole head put in, as it is stored but for the dtype; sorted by name."""
    found = {output.name: output for output in outputs}
    for term in head:
        value, before = term.fields["value"], found.get(term.site)
        dtype = value.dtype if before is None else before.dtype
        found[term.site] = OutputTensor(term.site, dtype, value.shape, value)
    return tuple(found[name] for name in sorted(found))


def check_fits(model: Patch, base: Checkpoint) -> None:
    """Raises UnknownSite or ShapeMismatch for a full model that differs from the base in more than its head."""
    for term in model.terms:
        if is_head(term):
            continue
        if term.site not in base.tensors:
            raise UnknownSite(term.site, base.name)
        if base.tensors[term.site].shape != term.fields["value"].shape:
            raise ShapeMismatch(term.site, term.fields["value"].shape, base.name, base.tensors[term.site].shape)


def labelled(config: Mapping[str, Any], patch: Patch, one: Input) -> dict[str, Any]:
    """A configuration with the labels of a kept head in place of its own, where that head states any."""
    labels = contract_of(patch, one).get("label_map")
    said = _labels_of(one) if one.kind == MODEL else {}
    if labels:
        said = {"id2label": dict(labels), "label2id": {name: int(number) for number, name in labels.items()}}
    return {key: value for key, value in config.items() if key not in LABELS or not said} | said


def _labels_of(one: Input) -> dict[str, Any]:
    """What a model's config.json says of its labels."""
    config = read_json(one.folder, join(one.path, "config.json"))
    return {key: config[key] for key in LABELS if key in config}


def _labels(patch: Patch, one: Input) -> dict[str, str] | None:
    if one.kind == MODEL:
        return _labels_of_config(_labels_of(one))
    stated = contract_of(patch, one).get("label_map")
    return None if stated is None else {str(number): name for number, name in stated.items()}


def _labels_of_config(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Names of classes by number; None where nobody gave them names."""
    found = config.get("id2label")
    if not isinstance(found, dict) or all(str(name) == f"LABEL_{number}" for number, name in found.items()):
        return None
    return {str(number): str(name) for number, name in found.items()}


def _told(labels: Mapping[str, str] | None) -> str:
    if labels is None:
        return "labels not stated"
    names: Iterable[str] = labels.values()
    text = ", ".join(names)
    return text if len(text) <= 60 else text[:60] + "…"
