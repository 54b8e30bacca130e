"""Patches that stand on top of others, as DPO does on SFT: what each needs in the recipe or in the base.

A patch names its predecessors by digest (`requires`), or by the recipe that made its base. Never imports torch.
"""

from collections.abc import Iterator, Mapping

from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.errors import BaseMismatch, ExpressionError, InvalidPatch
from adapterhub.merging.fingerprint import parameter_digests
from adapterhub.merging.patch import Patch, TrainingBase
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Ref

_COMMIT_DIGITS = 40


def check_predecessors(read: Mapping[Ref, Patch], inputs: Mapping[Ref, Input], base: Checkpoint) -> None:
    """Raises BaseMismatch where a patch was trained on top of another that is neither in the recipe nor in the base.

    read: the patches that the recipe adds. The base has a predecessor where its tensors are those that the patch says
    it was trained on. Raises InvalidPatch for a base's recipe that does not parse.
    """
    here = {patch.digest for patch in read.values()}
    for ref, patch in read.items():
        trained_on, name = patch.facts.base, inputs[ref].name
        missing = [one for digest, one in trained_on.requires.items() if digest not in here]
        missing += [one for one in _named(trained_on, name) if not _is_among(one, read, inputs)]
        missing = list(dict.fromkeys(missing))
        if not missing or _is_trained_on(base, trained_on.parameters):
            continue
        first, own = base.name.partition("@")[0], name.partition("@")[0]
        after = f", on {trained_on.recipe}" if trained_on.recipe else ""
        which = "them" if len(missing) > 1 else "it"
        raise BaseMismatch(
            f"{name}: was trained on top of {' and '.join(missing)}{after}, which this recipe lacks; add {which}, "
            f"as in {' + '.join((first, *missing, own))}"
        )


def _named(trained_on: TrainingBase, name: str) -> Iterator[str]:
    """The patches that made the base, by the recipe's own names; those that `requires` has by digest are left out."""
    if trained_on.recipe is None:
        return
    try:
        references = parse(trained_on.recipe).references()
    except ExpressionError as error:
        raise InvalidPatch(f"{name}: the recipe of its base does not parse: {error}") from error
    listed = {Ref.of(one).name for one in trained_on.requires.values()}
    # the first is the base itself
    yield from (one.address for one in references[1:] if one.name not in listed)


def _is_among(wanted: str, read: Mapping[Ref, Patch], inputs: Mapping[Ref, Input]) -> bool:
    """Whether the recipe adds what a name means; a commit in the name must be the input's, a branch may have moved."""
    ref = Ref.of(wanted)
    commit = ref.revision if len(ref.revision or "") == _COMMIT_DIGITS else None
    for one in (inputs[own] for own in read):
        name, _, found = one.name.partition("@")
        if name == ref.name and one.path == ref.path and commit in (None, found):
            return True
    return False


def _is_trained_on(base: Checkpoint, parameters: Mapping[str, str]) -> bool:
    return bool(parameters) and parameter_digests(base, parameters) == dict(parameters)
