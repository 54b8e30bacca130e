"""Which kinds of patch stack on one model, in which order, and which combinations are refused: the one table.

A stack is read from below: what is attached later lies on top, is the first to see the model's inputs and the last to
see a module's output. Kinds that become weights are in the base before anything is attached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapterhub.merging.errors import NotStackable


@dataclass(frozen=True)
class Group:
    """Kinds that stack alike. acts: what they do to a model, for the table."""

    name: str
    kinds: frozenset[str]
    acts: str


WEIGHTS = Group("weights", frozenset(), "become weights of the base: every kind that folds")

GROUPS: tuple[Group, ...] = (
    WEIGHTS,
    Group("prefixes", frozenset({"prefix_tuning", "cartridge"}), "fill the cache with keys and values"),
    Group(
        "prompts",
        frozenset({"prompt_tuning", "p_tuning", "cpt", "multitask_prompt_tuning", "ept"}),
        "put vectors before the embedded tokens",
    ),
    Group(
        "layers",
        frozenset({"adaption_prompt", "poly", "lily", "arrow", "loramoe"}),
        "replace modules by ones that look at the input",
    ),
    Group("activated", frozenset({"alora"}), "act after tokens that they look for in the input"),
    Group("routers", frozenset({"xlora", "shadow"}), "look at the whole sequence before or beside the model"),
    Group(
        "hidden states",
        frozenset({"adapters", "bottleneck", "steering", "lofit", "conditional_norm"}),
        "change what single modules give",
    ),
    Group("positions", frozenset({"reft"}), "change hidden states at counted positions"),
    Group(
        "described",
        frozenset({"side_model", "hypernetwork", "pyreft"}),
        "are recognised and described, and run elsewhere",
    ),
)
"""All groups; a kind that is in none of them becomes weights."""

_ONE_TUNER = "each would wrap the modules of the other"
_COUNTED = "it counts positions, and virtual tokens would shift them"
_SEQUENCE = "a router lays its weights over the tokens it was given, and virtual tokens make them more"
_WRAPPED = "a router wraps whole blocks, whose inside is then not where a patch looks for it"
_WEIGHTS = "weights are folded before anything is attached; detach, fold and attach again"
_ELSEWHERE = "it is a model of its own, and nothing here runs it"

_REFUSED: Mapping[tuple[str, str], str] = {
    ("prefixes", "prefixes"): "a cache begins with one prefix; join the two to one",
    ("prompts", "prefixes"): "a prefix comes before a prompt; attach it first",
    ("prompts", "routers"): _SEQUENCE,
    ("prefixes", "routers"): _SEQUENCE,
    ("routers", "prompts"): _SEQUENCE,
    ("routers", "prefixes"): _SEQUENCE,
    ("layers", "layers"): _ONE_TUNER,
    ("layers", "activated"): _ONE_TUNER,
    ("layers", "routers"): _ONE_TUNER,
    ("activated", "layers"): _ONE_TUNER,
    ("activated", "activated"): _ONE_TUNER,
    ("activated", "routers"): _ONE_TUNER,
    ("routers", "layers"): _ONE_TUNER,
    ("routers", "activated"): _ONE_TUNER,
    ("routers", "routers"): _ONE_TUNER,
    ("activated", "prompts"): "it would no longer see the tokens it looks for; attach the prompt first",
    ("hidden states", "routers"): _WRAPPED,
    ("positions", "routers"): _WRAPPED,
    ("routers", "hidden states"): _WRAPPED,
    ("routers", "positions"): _WRAPPED,
    ("prompts", "positions"): _COUNTED,
    ("positions", "prompts"): _COUNTED,
}
"""Pairs (lower, upper) of groups that do not stack, and why; all others do, but for the two rules of `refusal`."""


_COMMUTING: frozenset[str] = frozenset({"steering"})
"""Kinds that add what does not depend on what they find: of several, none needs to be the first."""


def commutes(lower: str, upper: str) -> bool:
    """Whether two kinds of one group do the same in either order."""
    return lower in _COMMUTING and upper in _COMMUTING


def group_of(kind: str) -> Group:
    """The group of a patch kind."""
    return next((group for group in GROUPS if kind in group.kinds), WEIGHTS)


def refusal(lower: Group, upper: Group) -> str | None:
    """Why `upper` does not go on top of `lower`; None where it does."""
    if "described" in (lower.name, upper.name):
        return _ELSEWHERE
    if upper is WEIGHTS and lower is not WEIGHTS:
        return _WEIGHTS
    return _REFUSED.get((lower.name, upper.name))


def check_stack(attached: Sequence[str], kind: str) -> None:
    """Raises NotStackable unless a patch of that kind goes on top of those attached, given from below."""
    for lower in attached:
        why = refusal(group_of(lower), group_of(kind))
        if why is not None:
            raise NotStackable(lower, kind, why)


def page() -> str:
    """docs/stacking.md: the groups, the table, and the reasons."""
    text = (
        "# Stacking\n\nWhich kinds of patch go on one model together. A stack is read from below: the row lies below, "
        "the column on top of it. What is on top sees the inputs first and a module's output last; two prompts give "
        "the tokens of the lower one first.\n\n"
        "In an expression, `lab/base + lab/prompt + lab/vector` puts each group where the table lets it lie. Several "
        "of one group need an order, which `sequence(lab/base; lab/first, lab/second)` declares, the lowest first; "
        "steering vectors alone do the same in either order.\n\n"
        "| group | kinds | what they do |\n|---|---|---|\n"
    )
    for group in GROUPS:
        kinds = ", ".join(f"`{kind}`" for kind in sorted(group.kinds)) or "all others"
        text += f"| {group.name} | {kinds} | {group.acts} |\n"
    names = [group.name for group in GROUPS]
    text += "\n| below \\ on top | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1) + "\n"
    reasons: list[str] = []
    for lower in GROUPS:
        cells = []
        for upper in GROUPS:
            why = refusal(lower, upper)
            if why is not None and why not in reasons:
                reasons.append(why)
            cells.append("yes" if why is None else f"no ({reasons.index(why) + 1})")
        text += f"| {lower.name} | " + " | ".join(cells) + " |\n"
    return text + "\n" + "".join(f"{number}. {why[0].upper()}{why[1:]}.\n" for number, why in enumerate(reasons, 1))
