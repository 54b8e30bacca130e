"""Which files a repository's .gitattributes calls large and its .gitignore leaves out.

Source: gitattributes(5), gitignore(5) and git's wildmatch.c, whose answers the tests compare. Own code, because a
library's gitignore matcher lets a pattern reach into folders, which gitattributes does not, and because the patterns
come from users: each becomes a regular expression that gives up no position twice, so that no pattern takes long.
Differs: a `?` is one character, where git takes it for one byte.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

PATTERNS = 500
"""Most patterns that count, of all files together; later ones are not looked at. Each is tried on each path."""

PATTERN_CHARACTERS = 256

_CLASSES: Mapping[str, str] = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "digit": "0-9",
    "lower": "a-z",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(?:[ \t]+|$)')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


@dataclass(frozen=True)
class Pattern:
    """One pattern of a file that lies in `folder` ("" or ending in "/"). is_whole: matched against more than a name."""

    folder: str
    expression: re.Pattern[str]
    is_whole: bool
    is_folder_only: bool = False
    is_negated: bool = False

    def matches(self, path: str) -> bool:
        """Whether it means the file or folder `path`."""
        if not path.startswith(self.folder):
            return False
        inside = path[len(self.folder) :]
        return self.expression.match(inside if self.is_whole else inside.rpartition("/")[2]) is not None


class Attributes:
    """What the .gitattributes files of a commit say about the attribute `filter`."""

    def __init__(self, files: Mapping[str, str]) -> None:
        """files: their texts by path. A file in a deeper folder has the last word, and in one file the last line."""
        self._rules: list[tuple[Pattern, bool]] = []
        macros: dict[str, bool] = {}
        for path in sorted(files, key=lambda path: path.count("/")):
            self._rules += _attribute_rules(path.rpartition("/")[0], files[path], macros)
        del self._rules[PATTERNS:]

    def is_large(self, path: str) -> bool | None:
        """Whether `path` has filter=lfs; None where nothing is said about it."""
        return next((is_large for pattern, is_large in reversed(self._rules) if pattern.matches(path)), None)


class Ignored:
    """What a .gitignore at the root leaves out."""

    def __init__(self, text: str) -> None:
        self._patterns = [pattern for line in _lines(text) if (pattern := _ignore_pattern(line)) is not None]
        self._folders: dict[str, bool] = {}

    def __contains__(self, path: str) -> bool:
        """Whether the file is left out, or any folder it lies in is: git looks into no folder that is left out."""
        folder = path.rpartition("/")[0]
        return self._is_in_ignored(folder) or self._is_left_out(path, is_folder=False)

    def _is_in_ignored(self, folder: str) -> bool:
        """Whether the folder is left out, or one that it lies in; looked at once for all that lies in it."""
        if not folder:
            return False
        if folder not in self._folders:
            above = self._is_in_ignored(folder.rpartition("/")[0])
            self._folders[folder] = above or self._is_left_out(folder, is_folder=True)
        return self._folders[folder]

    def _is_left_out(self, path: str, *, is_folder: bool) -> bool:
        fitting = (p for p in reversed(self._patterns) if (is_folder or not p.is_folder_only) and p.matches(path))
        last = next(fitting, None)
        return last is not None and not last.is_negated


def _attribute_rules(folder: str, text: str, macros: dict[str, bool]) -> Iterator[tuple[Pattern, bool]]:
    """The lines of one file that set or unset `filter`; those that name a macro add to `macros`, at the root alone."""
    for line in _lines(text):
        name, words = _split(line)
        if line.startswith("[attr]"):
            if not folder and (value := _filter_of(words, {})) is not None:
                macros[name.removeprefix("[attr]")] = value
            continue
        value = _filter_of(words, macros)
        if value is None or name.startswith("!") or name.endswith("/"):
            continue
        expression = _anchored(name.removeprefix("/")) if "/" in name else _expression(name)
        if expression is not None:
            yield Pattern(f"{folder}/" if folder else "", expression, "/" in name), value


def _split(line: str) -> tuple[str, list[str]]:
    """The pattern of a line of .gitattributes, its quotes removed, and its attributes."""
    quoted = _QUOTED.match(line)
    if quoted is None:
        first, *words = line.split()
        return first, words
    plain = re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), quoted[1])
    return plain, line[quoted.end() :].split()


def _filter_of(words: Iterable[str], macros: Mapping[str, bool]) -> bool | None:
    """Whether the attributes set filter to lfs; None when they leave it as it is."""
    found = None
    for word in words:
        if word.startswith("filter="):
            found = word == "filter=lfs"
        elif word in ("filter", "-filter", "!filter"):
            found = False
        elif word in macros:
            found = macros[word]
    return found


def _lines(text: str) -> list[str]:
    """The lines that hold a pattern."""
    lines = (line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n"))
    wanted = [line for line in lines if line.strip() and not line.startswith("#") and len(line) <= PATTERN_CHARACTERS]
    return wanted[:PATTERNS]


def _ignore_pattern(line: str) -> Pattern | None:
    written = re.sub(r"(?<!\\) +$", "", line)
    is_negated = written.startswith("!")
    written = written.removeprefix("!")
    is_folder_only = written.endswith("/")
    written = written.removesuffix("/")
    expression = _anchored(written.removeprefix("/")) if "/" in written else _expression(written) if written else None
    if expression is None:
        return None
    return Pattern("", expression, "/" in written, is_folder_only, is_negated)


_LITERAL = re.compile(r"[^*?\[\\]*")


def _anchored(pattern: str) -> re.Pattern[str] | None:
    """The regular expression of a pattern with a slash, None where git's matcher would never find anything by it.

    git compares what stands before the first special character by itself and matches the rest as a pattern of its own:
    so the `**` of "a**" begins one, and reaches into folders.
    """
    literal = _LITERAL.match(pattern)
    start = literal[0] if literal else ""
    rest = _expression(pattern[len(start) :])
    return None if rest is None else re.compile(re.escape(start) + rest.pattern, re.DOTALL)


def _expression(pattern: str) -> re.Pattern[str] | None:
    """The regular expression of a pattern, None where git's matcher would never find anything by it.

    The parts between two `**` are taken at the first place where they fit, and so are the texts between two `*`: a
    later place can serve only if an earlier one does. That is what the atomic groups say, and why nothing backtracks.
    """
    blocks: list[list[str]] = [[]]
    parts = _parts(pattern)
    if parts is None:
        return None
    for part in parts:
        if len(part) > 1 and not part.strip("*"):
            blocks.append([])
            continue
        segment = _segment(part)
        if segment is None:
            return None
        blocks[-1].append(segment)
    first, *others = blocks
    written = "/".join(first)
    if not others:
        return re.compile(rf"{written}\Z", re.DOTALL)
    *middle, last = others
    written += "/" if first else ""
    for block in filter(None, middle):
        written += rf"(?>(?:[^/]+/)*?{'/'.join(block)}/)"
    written += rf"(?:.*/)?{'/'.join(last)}\Z" if last else r".*\Z"
    return re.compile(written, re.DOTALL)


def _parts(pattern: str) -> list[str] | None:
    """The pattern cut at its slashes, those inside brackets left alone; None for a bracket that is not closed."""
    parts, start, at = [], 0, 0
    while at < len(pattern):
        if pattern[at] == "[":
            found = _bracket(pattern, at)
            if found is None:
                return None
            at = found[1]
            continue
        if pattern[at] == "/":
            parts.append(pattern[start:at])
            start = at + 1
        at += 2 if pattern[at] == "\\" else 1
    return [*parts, pattern[start:]]


def _segment(part: str) -> str | None:
    """The expression of one segment of a pattern; None for a bracket that is not closed or a backslash at the end."""
    pieces, at = [""], 0
    while at < len(part):
        character = part[at]
        if character == "*":
            while part[at : at + 1] == "*":
                at += 1
            pieces.append("")
            continue
        if character == "[":
            found = _bracket(part, at)
            if found is None:
                return None
            written, at = found
            pieces[-1] += written
            continue
        if character == "\\":
            at += 1
            if at == len(part):
                return None
        pieces[-1] += "[^/]" if character == "?" else re.escape(part[at])
        at += 1
    first, *others = pieces
    if not others:
        return first
    *middle, last = others
    return first + "".join(rf"(?>[^/]*?{piece})" for piece in middle if piece) + rf"[^/]*{last}"


def _bracket(part: str, start: int) -> tuple[str, int] | None:
    """The expression of the bracket that opens at `start`, and where it ends; None where it does not."""
    at = start + 1
    is_negated = part[at : at + 1] in ("!", "^")
    at += is_negated
    written, is_first = "", True
    while part[at : at + 1] != "]" or is_first:
        is_first = False
        named = re.compile(r"\[:([a-z]*):\]").match(part, at)
        if named:
            if named[1] not in _CLASSES:
                return None
            written += _CLASSES[named[1]]
            at = named.end()
            continue
        low, at = _literal(part, at)
        high = low
        if part[at : at + 1] == "-" and part[at + 1 : at + 2] not in ("", "]"):
            high, at = _literal(part, at + 1)
        if not low or not high:
            return None
        if low <= high:
            written += f"{re.escape(low)}-{re.escape(high)}"
    if not written:
        return ("[^/]" if is_negated else r"(?!)"), at + 1
    return (f"[^/{written}]" if is_negated else f"(?!/)[{written}]"), at + 1


def _literal(part: str, at: int) -> tuple[str, int]:
    """The character at that place, a backslash before it removed, and the place after it; "" past the end."""
    at += part[at : at + 1] == "\\"
    return part[at : at + 1], at + 1
