"""Errors of the tensor algebra.

MergingError
├── BrokenContainer      a safetensors file whose header or offsets are wrong
├── InvalidPatch         files that say they are a patch and contradict themselves
├── ExpressionError      a recipe's text that does not parse; carries the position
├── RecipeFileError      a recipe file that means nothing; says where in it
├── InvalidRecipe        a canonical recipe that contradicts itself, or says what this version does not know
├── RecipeTooLarge       a recipe past the limits on length, depth, terms or total rank
├── UnknownName          an expression names an input that was not given
├── UnknownMethod        no merge method of that name
├── UnknownEngine        no serving engine of that name, or no such version
├── InvalidParameter     a method's parameter outside its range, or of no such name
├── ShapeMismatch        a term does not fit the base's parameter
├── UnknownSite          a term names a parameter that the base does not have
├── BaseMismatch         inputs that belong to different bases
├── NotFoldable          a term that cannot become weights here
├── NotStackable         patches that do not go on top of one another
├── NotRepresentable     `--as KIND` asked of something that has no such form
├── NonFinite            NaN or infinity in an input or a result
├── PlanTooLarge         the work needs more memory or disk than allowed
└── Cancelled            the caller asked to stop
"""

from collections.abc import Sequence

from adapterhub.errors import AdapterHubError


class MergingError(AdapterHubError):
    """Anything the algebra refuses or cannot do."""


class BrokenContainer(MergingError):
    """A safetensors file whose header or offsets are wrong; `rule` names the check, e.g. "st.offsets"."""

    def __init__(self, file: str, rule: str, found: str) -> None:
        super().__init__(f"{file}: not a sound safetensors file ({rule}): {found}; write it again with safetensors")
        self.file = file
        self.rule = rule


class InvalidPatch(MergingError):
    """Files that say they are a patch and contradict themselves or miss a part."""


class ExpressionError(MergingError):
    """A recipe's text that does not parse. `position` counts characters from 0."""

    def __init__(self, text: str, position: int, problem: str) -> None:
        shown = text if len(text) <= 200 else text[:200] + "…"
        super().__init__(f"{problem}, at character {position + 1} of: {shown}")
        self.text = text
        self.position = position
        self.problem = problem


class InvalidRecipe(MergingError):
    """A canonical recipe that contradicts itself, or that says what this version does not know."""


class RecipeFileError(MergingError):
    """A recipe file that means nothing. `where` is the place in it, such as "models[1].parameters.density"."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where


class RecipeTooLarge(MergingError):
    """A recipe past the limits on length, depth, number of terms or total rank."""


class UnknownName(MergingError):
    """An expression names an input that was not given."""


class UnknownMethod(MergingError):
    """No merge method of that name."""

    def __init__(self, name: str, known: Sequence[str], nearest: str | None) -> None:
        hint = f"did you mean {nearest}?" if nearest else f"known are {', '.join(known)}"
        super().__init__(f"{name}: no such merge method; {hint}")
        self.name = name


class UnknownEngine(MergingError):
    """No serving engine of that name, or what is no version of one."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(f"{text}: no such serving engine; {hint}")
        self.text = text


class InvalidParameter(MergingError):
    """A method's parameter outside its range, or of no such name."""


class ShapeMismatch(MergingError):
    """A term does not fit the base's parameter. cure: what to do about it."""

    def __init__(
        self,
        site: str,
        found: Sequence[int],
        base: str,
        expected: Sequence[int],
        cure: str = "port the patch to this base first",
    ) -> None:
        super().__init__(f"{site}: delta is {tuple(found)}, base {base!r} has {tuple(expected)}; {cure}")
        self.base = base
        self.site = site
        self.found = tuple(found)
        self.expected = tuple(expected)


class UnknownSite(MergingError):
    """A term names a parameter that the base does not have."""

    def __init__(self, site: str, base: str) -> None:
        super().__init__(f"{site}: base {base!r} has no such parameter; this patch was made for another architecture")
        self.site = site


class BaseMismatch(MergingError):
    """Inputs that belong to different bases."""


class NotFoldable(MergingError):
    """A term that cannot become weights here."""


class NotStackable(MergingError):
    """Patches that do not go on top of one another, or not in this order."""

    def __init__(self, lower: str, upper: str, why: str) -> None:
        super().__init__(f"{upper} does not go on top of {lower}: {why}; docs/stacking.md has the table")
        self.lower = lower
        self.upper = upper


class NotRepresentable(MergingError):
    """`--as KIND` asked of something that has no such form."""


class NonFinite(MergingError):
    """NaN or infinity in an input or a result."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(f"{name}: NaN or infinity in {where}; nothing was written")
        self.name = name


class PlanTooLarge(MergingError):
    """The work needs more memory than allowed, or more disk than is free; nothing is left behind."""


class Cancelled(MergingError):
    """The caller asked to stop; nothing was written."""
