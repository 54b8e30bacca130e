"""What a registry holds, with the parameters of each, as the command prints it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from adapterhub.cli.output import say, show_json_lines, show_table


def show_variants(what: str, specs: Iterable[Any], told: str, *, as_json: bool) -> None:
    """Print specs of one registry. what: the heading of their names; told: a field that this registry alone has.

    On a terminal they are listed by their `usage`, where they have one.
    """
    from adapterhub.merging.registry import parameters_of

    found = [(spec, parameters_of(spec.parameters)) for spec in specs]
    if as_json:
        show_json_lines(
            {name: getattr(spec, name) for name in ("name", "title", "summary", "source", told)}
            | {"parameters": [asdict(one) | {"range": one.range} for one in several]}
            for spec, several in found
        )
        return
    rows = ((getattr(spec, "usage", spec.name), spec.summary, spec.source) for spec, _ in found)
    show_table((what, "what it does", "source"), rows)
    say("", to_stdout=True)
    told_of = ((spec.name, one.name, one.default, one.range, one.help) for spec, several in found for one in several)
    show_table((what, "parameter", "default", "range", "meaning"), told_of)
