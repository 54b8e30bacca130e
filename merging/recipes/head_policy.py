"""What a recipe says of the heads that its inputs bring: which one stays, none, or all of them beside the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.recipes.nodes import Ref

CHOICES = "heads=keep:NAME for the head of one (or of the base), heads=drop for the base's alone, heads=multi for all"


@dataclass(frozen=True)
class Heads:
    """A head policy. choice: "keep" with the input whose head stays, "drop", or "multi"."""

    choice: str
    of: Ref | None = None

    def __str__(self) -> str:
        return self.choice if self.of is None else f"{self.choice}:{self.of}"

    def canonical(self, digests: Mapping[Ref, str]) -> str | dict[str, str]:
        """The policy as a canonical recipe has it: an input by its digest."""
        return self.choice if self.of is None else {self.choice: digests[self.of]}


def policy(said: str | Heads | None, references: Sequence[Ref]) -> Heads | None:
    """The policy that "keep:NAME", "multi" or "drop" means, or that a recipe has. Raises InvalidParameter for others,
    and for an input that is not among those that are merged."""
    if said is None or (isinstance(said, Heads) and (said.of is None or said.of in references)):
        return said
    choice, _, name = str(said).partition(":")
    found = next((ref for ref in references if name in (str(ref), ref.address)), None)
    if (choice in ("drop", "multi") and not name) or (choice == "keep" and found is not None):
        return Heads(choice, found)
    named = ", ".join(map(str, references))
    raise InvalidParameter(f"heads is {str(said)!r}; expected keep:NAME with one of {named}, multi or drop")
