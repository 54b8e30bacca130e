"""Makes docs/compatibility.md of what the tests marked `every_client` wrote down: `make compat`.

Given --check it writes nothing, and fails where the page differs or too little of what concerns this hub works.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients.areas import ELSEWHERE, ELSEWHERE_IN_OLD, OTHER, OWN, REASONS, REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
LEAST_SHARE = 0.95
"""Of the newest client's methods that concern this hub, how many must work."""
INTRO = """\
<!-- made by `make compat`, which runs the clients: change the hub or its tests, not this file -->
# Compatibility

Every public method of `HfApi`, by what came of it when unmodified clients called a running hub.

- **works**: returned without an error, in the test that is named (in `tests/clients`);
- **refused**: this hub refuses it, with the error that is named;
- **elsewhere**: the client asks a host of its own, wherever `HF_ENDPOINT` leads;
- **not yet**: concerns this hub, and no test has seen it work;
- **-**: this version of the client has no such method.
"""


@dataclass
class Seen:
    """What one version of the client did. worked, failed: method -> the tests, and the errors, that showed it."""

    methods: set[str] = field(default_factory=set)
    worked: dict[str, set[str]] = field(default_factory=dict)
    worked_within: dict[str, set[str]] = field(default_factory=dict)
    failed: dict[str, set[str]] = field(default_factory=dict)


def read(lines: Iterable[str]) -> Mapping[str, Seen]:
    """What each version of the client did, the newest first."""
    found: dict[str, Seen] = {}
    for line in lines:
        told: dict[str, Any] = json.loads(line)
        seen = found.setdefault(told["client"], Seen())
        if "methods" in told:
            seen.methods |= set(told["methods"])
        elif told["error"]:
            seen.failed.setdefault(told["method"], set()).add(told["error"])
        else:
            into = seen.worked if told["direct"] else seen.worked_within
            test = told["test"].partition("[")[0].removeprefix("tests/clients/")
            into.setdefault(told["method"], set()).add(test)
    order = sorted(found, key=lambda version: [int(part) for part in version.split(".")], reverse=True)
    return {version: found[version] for version in order}


def outcome(method: str, seen: Seen) -> str:
    """The cell of that method and version."""
    if method not in seen.methods:
        return "-"
    if method in ELSEWHERE or (method in ELSEWHERE_IN_OLD and method not in seen.failed):
        return "elsewhere"
    concerned = any(method in methods for methods in OWN.values())
    if concerned and (method in seen.worked or method in seen.worked_within):
        return "works"
    return "refused" if method in seen.failed and (not concerned or method in REFUSED) else "not yet"


def shown_by(method: str, clients: Sequence[Seen], before: str) -> str:
    """The test that showed the method at work, `before` while it still does; or the error that refuses it."""
    for seen in clients:
        state = outcome(method, seen)
        if state == "works":
            tests = seen.worked.get(method) or seen.worked_within[method]
            return before if before in {f"`{test}`" for test in tests} else f"`{min(tests)}`"
        if state == "refused":
            error = min(map(_without_names, seen.failed[method]), key=_told_by_the_hub)
            why = f"{REFUSED[method]}: " if method in REFUSED else ""
            return f"{why}`{error}`".replace("|", "\\|")
    return ""


def _without_names(error: str) -> str:
    """The error without what differs from run to run."""
    return re.sub(r"http://127\.0\.0\.1:\d+", "HF_ENDPOINT", re.sub(r"\badmin/r[0-9a-f]{10}\b", "admin/name", error))


def _told_by_the_hub(error: str) -> tuple[bool, str]:
    return ("not kept here" not in error and "BadRequest" not in error, error)


def share(seen: Seen, areas: Iterable[str] = tuple(OWN)) -> tuple[int, int]:
    """How many methods of the areas work, and how many there are; by default of all that concerns this hub."""
    mine = [name for area in areas for name in OWN[area] if name in seen.methods]
    return sum(outcome(name, seen) == "works" for name in mine), len(mine)


def page(clients: Mapping[str, Seen], before: str) -> str:
    """The whole page; before: the page as it was, whose tests stay named while they still show what they did."""
    named = dict(_rows(before))
    text = INTRO
    for version, seen in clients.items():
        works, of = share(seen)
        text += (
            f"\nhuggingface_hub {version}: {works} of the {of} methods that concern this hub work, {works / of:.0%}.\n"
        )
    text += f"\n| works | {' | '.join(clients)} |\n|---|{'---|' * len(clients)}\n"
    for area in OWN:
        shares = ["{} of {}".format(*share(seen, [area])) for seen in clients.values()]
        text += f"| {area} | {' | '.join(shares)} |\n"
    for areas, title in ((OWN, "{}"), (OTHER, "Not for this hub: {}")):
        for area, methods in areas.items():
            text += f"\n## {title.format(area if areas is OWN else area.lower())}\n\n"
            text += f"It has none: {REASONS[area]}.\n\n" if area in REASONS else ""
            text += f"| method | {' | '.join(clients)} | test or reason |\n|---|{'---|' * len(clients)}---|\n"
            for method in methods:
                cells = [outcome(method, seen) for seen in clients.values()]
                reason = shown_by(method, list(clients.values()), named.get(method, ""))
                text += f"| `{method}` | {' | '.join(cells)} | {reason} |\n"
    return text


def _rows(text: str) -> Iterable[tuple[str, str]]:
    """The method and the last cell of each row."""
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = line.strip("| ").split(" | ")
            yield cells[0].strip("`"), cells[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("record", type=Path)
    arguments = parser.parse_args()
    clients = read(arguments.record.read_text().splitlines())
    before = PAGE.read_text() if PAGE.exists() else ""
    text = page(clients, before)
    works, of = share(next(iter(clients.values())))
    say = sys.stdout.write
    known = {name for areas in (OWN, OTHER) for methods in areas.values() for name in methods}
    if unknown := set().union(*(seen.methods for seen in clients.values())) - known:
        say(f"these methods stand in no area of tests/clients/areas.py: {', '.join(sorted(unknown))}\n")
        return 1
    if arguments.check and text != before:
        say("\n".join(difflib.unified_diff(before.splitlines(), text.splitlines(), "docs", "now", lineterm="", n=0)))
        say("\ndocs/compatibility.md differs: run `make compat`, and read what changed\n")
        return 1
    if not arguments.check:
        PAGE.write_text(text)
    say(f"{works} of {of} methods that concern this hub work; at least {LEAST_SHARE:.0%} must\n")
    return 0 if works >= LEAST_SHARE * of else 1


if __name__ == "__main__":
    sys.exit(main())
