"""The run-time patches of a recipe: told from what becomes weights, and put in the order in which they go on a model.

A sum has no order, so those of a sum lie as the stacking table lets them, each group's by digest where the order does
not matter; where it does, `sequence(base; a, b)` declares it. Weights are folded before anything is attached. Never
imports torch: `merging/runtime/` attaches what is found here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.methods import methods
from adapterhub.merging.patch import NOT_FOLDABLE, Facts, Patch
from adapterhub.merging.recipes.canonical import Input, Merged, Normal, Part, Patched
from adapterhub.merging.recipes.nodes import Ref
from adapterhub.merging.recipes.values import Schedule
from adapterhub.merging.runtime import runtimes
from adapterhub.merging.stacking import GROUPS, WEIGHTS, check_stack, commutes, group_of

ARGUMENTS = frozenset({"task_ids", "speaker_ids"})
"""Arguments of a call that patches may need, of which a model without patches knows nothing."""


@dataclass(frozen=True)
class Attachment:
    """One run-time patch and its weight. name: of the input. virtual_tokens: places that it takes in the context.

    size_bytes: of its tensors in memory, 16-bit ones widened. needs: those of ARGUMENTS that every call must give.
    """

    name: str
    kind: str
    folder: Folder
    path: str
    weight: float
    size_bytes: int = 0
    virtual_tokens: int = 0
    needs: tuple[str, ...] = ()


def is_runtime(patch: Patch) -> bool:
    """Whether a patch works at run time alone."""
    return patch.facts.effect == "runtime"


def not_foldable(one: Input, patch: Patch) -> NotFoldable:
    """Why a run-time patch does not become weights, and what to do with it instead."""
    if one.kind not in runtimes():
        return NotFoldable(
            f"{one.name}: a {one.kind} works at run time, is a model of its own and cannot become weights; nothing "
            "here runs it, so leave it out of the recipe"
        )
    why = patch.facts.detail.get(NOT_FOLDABLE) or f"a {one.kind} works at run time and cannot become weights"
    return NotFoldable(
        f"{one.name}: {why}; ask for the same recipe as `model` of "
        "a chat, a completion or a task, which attaches it to the served model"
    )


def split(
    normal: Normal, inputs: Mapping[Ref, Input], read: Mapping[Ref, Patch]
) -> tuple[Normal, tuple[Attachment, ...]]:
    """What becomes weights, and what is attached then, the lowest first.

    Raises NotFoldable for a run-time patch inside a merge method, one that nothing here runs, and several whose order
    is not declared; NotStackable for kinds that do not go on one another.
    """
    splitting = _Splitting(inputs, read)
    folded = tuple(one for part in normal.parts for one in splitting.part(part))
    return Normal(normal.base, folded), splitting.ordered()


class _Splitting:
    """Collects the attachments of a flat sum: those of its own, and those of sequences, whose order is declared."""

    def __init__(self, inputs: Mapping[Ref, Input], read: Mapping[Ref, Patch]) -> None:
        self._inputs = inputs
        self._read = read
        self._loose: list[Attachment] = []
        self._sequences: list[list[Attachment]] = []

    def part(self, part: Part) -> Iterable[Part]:
        """What of a part becomes weights."""
        leaf = part.leaf
        if isinstance(leaf, Patched) and is_runtime(self._read[leaf.ref]):
            self._loose.append(self._attachment(leaf.ref, part.weight, part.schedules))
            return []
        if isinstance(leaf, Merged) and methods()[leaf.method].is_sequential:
            return self._sequence(part, leaf)
        self._check_weights_alone(part)
        return [part]

    def _sequence(self, part: Part, leaf: Merged) -> Iterable[Part]:
        found: list[Attachment] = []
        kept: list[int] = []
        for number, (weight, inner) in enumerate(zip(leaf.weights, leaf.inputs, strict=True)):
            refs = [one.leaf.ref for one in inner if isinstance(one.leaf, Patched)]
            if len(inner) == len(refs) == 1 and is_runtime(self._read[refs[0]]):
                own = leaf.schedules[number] if leaf.schedules else ()
                schedules = (*part.schedules, *own, *inner[0].schedules)
                found.append(self._attachment(refs[0], part.weight * weight * inner[0].weight, schedules))
                continue
            for one in inner:
                self._check_weights_alone(one)
            if inner and found:
                check_stack([found[-1].kind], _name(inner, self._inputs))
            kept.append(number)
        if not found:
            return [part]
        self._sequences.append(found)
        if not kept:
            return []
        return [replace(part, leaf=leaf.only(kept))]

    def _check_weights_alone(self, part: Part) -> None:
        """Raises NotFoldable for a run-time patch where only what becomes weights can stand."""
        match part.leaf:
            case Patched(ref=ref) if is_runtime(self._read[ref]):
                one = self._inputs[ref]
                raise NotFoldable(
                    f"{one.name}: a {one.kind} works at run time, and a merge method computes with weights; add it to "
                    f"the sum outside the method, as in ties(...) + {one.name.partition('@')[0]}"
                )
            case Merged(inputs=inputs):
                for inner in inputs:
                    for one_part in inner:
                        self._check_weights_alone(one_part)

    def _attachment(self, ref: Ref, weight: float, schedules: Sequence[Schedule]) -> Attachment:
        one, facts = self._inputs[ref], self._read[ref].facts
        if one.kind not in runtimes():
            raise not_foldable(one, self._read[ref])
        if schedules:
            raise NotFoldable(
                f"{one.name}: a {one.kind} works at run time as a whole, so its weight is one number; found "
                f"{schedules[0]}"
            )
        return Attachment(one.name, one.kind, one.folder, one.path, weight, *_sizes(facts))

    def ordered(self) -> tuple[Attachment, ...]:
        """All of them, the lowest first. Raises NotFoldable and NotStackable as `split`."""
        if self._sequences:
            if self._loose or len(self._sequences) > 1:
                one = (self._loose or self._sequences[1])[0]
                raise NotFoldable(
                    f"{one.name}: a sequence declares the order of run-time patches, and this {one.kind} stands "
                    "outside it; put all of them into one sequence"
                )
            order: Sequence[Attachment] = self._sequences[0]
        else:
            # the sum comes in digest order, and sorting keeps it inside a group
            order = sorted(self._loose, key=lambda one: GROUPS.index(group_of(one.kind)))
        for number, one in enumerate(order):
            check_stack([lower.kind for lower in order[:number]], one.kind)
        if not self._sequences:
            _check_declared(order)
        return tuple(order)


def _check_declared(order: Sequence[Attachment]) -> None:
    for lower, upper in pairwise(order):
        if group_of(lower.kind) is group_of(upper.kind) and not commutes(lower.kind, upper.kind):
            names = ", ".join(one.name.partition("@")[0] for one in (lower, upper))
            raise NotFoldable(
                f"{upper.name}: what a {upper.kind} does depends on whether {lower.name} acts before it; declare the "
                f"order, the lowest first, as in sequence(base; {names})"
            )


def _name(parts: Sequence[Part], inputs: Mapping[Ref, Input]) -> str:
    """How a step of a sequence that becomes weights is called: its kind, or that of all weights."""
    leaf = parts[0].leaf
    return inputs[leaf.ref].kind if isinstance(leaf, Patched) else WEIGHTS.name


def _sizes(facts: Facts) -> tuple[int, int, tuple[str, ...]]:
    """Bytes, virtual tokens and needed arguments."""
    widened = max(facts.size_bytes, 4 * facts.parameter_count)
    needs = tuple(one for one in facts.detail.get("needs", ()) if one in ARGUMENTS)
    return widened, int(facts.detail.get("virtual_tokens", 0)), needs
