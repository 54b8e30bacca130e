"""The texts the demo trains on: all of them ship with Python and its packages, so nothing is downloaded.

No passage is in two places: a passage belongs to the first part it is found in, and held-out text is chosen first.
Passages are compared by their letters alone, so the same licence wrapped at another column counts as the same.
"""

import ast
import hashlib
import re
import sysconfig
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_LICENCE_NAMES = re.compile(r"(LICEN[CS]E|COPYING|NOTICE)", re.IGNORECASE)
_PASSAGE_BREAK = re.compile(r"\n\s*\n")
_WORTH_SPLITTING = 24
"""Letters below which a passage is a heading or a bracket, which any two texts share."""


@dataclass(frozen=True)
class Corpus:
    """Text of one manner, UTF-8: train to learn from, test held out to measure on. No passage is in both."""

    name: str
    train: bytes
    test: bytes


def prose(limit_bytes: int = 400_000) -> tuple[Corpus, Corpus]:
    """English prose of Python's manual, as two corpora that share no topic: for the base, and for its version 2."""
    from pydoc_data.topics import topics

    old, new = _share(topics, "version", 0.4)
    seen: set[str] = set()
    return (
        _corpus("prose", old, limit_bytes, seen),
        _corpus("new prose", new, limit_bytes, seen),
    )


def code(limit_bytes: int = 300_000) -> Corpus:
    """Sources of the standard library's modules, those left out that `docstrings` reads."""
    sources, _ = _share(_modules(), "docstrings", 0.5)
    return _corpus("code", sources, limit_bytes)


def docstrings(limit_bytes: int = 200_000) -> Corpus:
    """Docstrings of the standard library's modules, those left out that `code` reads."""
    _, sources = _share(_modules(), "docstrings", 0.5)
    return _corpus("docstrings", {name: "\n\n".join(_docstrings(text)) for name, text in sources.items()}, limit_bytes)


def licences(limit_bytes: int = 300_000) -> Corpus:
    """Licence texts of Python and of the packages installed beside it."""
    return _corpus("licences", dict(_licence_files()), limit_bytes)


def names(limit_bytes: int = 200_000) -> Corpus:
    """Names of Unicode's characters, one a line, in passages of sixteen neighbours."""
    known = [name for code_point in range(0x20, 0x3000) if (name := unicodedata.name(chr(code_point), ""))]
    rows = ["\n".join(known[start : start + 16]) for start in range(0, len(known), 16)]
    return _corpus("names", {f"{number:04d}": row for number, row in enumerate(rows)}, limit_bytes)


def _corpus(name: str, documents: Mapping[str, str], limit_bytes: int, seen: set[str] | None = None) -> Corpus:
    """The documents as a corpus: a tenth held out by document, then passages that were seen before left out."""
    seen = set() if seen is None else seen
    train, test = _share(documents, "test", 0.1)
    held_out = _join(test.values(), seen, limit_bytes // 8)
    return Corpus(name, train=_join(train.values(), seen, limit_bytes), test=held_out)


def _join(texts: Iterable[str], seen: set[str], limit_bytes: int) -> bytes:
    """The texts' passages that are not in `seen`, which grows by them; at most limit_bytes of UTF-8."""
    kept = [passage for text in texts for passage in _PASSAGE_BREAK.split(text) if _is_fresh(passage, seen)]
    return "\n\n".join(kept).encode("utf-8", "replace")[:limit_bytes]


def _is_fresh(passage: str, seen: set[str]) -> bool:
    letters = "".join(filter(str.isalpha, passage.lower()))
    if letters in seen:
        return False
    if len(letters) >= _WORTH_SPLITTING:
        seen.add(letters)
    return bool(passage.strip())


def _share(documents: Mapping[str, str], purpose: str, share: float) -> tuple[dict[str, str], dict[str, str]]:
    """The documents in two parts, the second about `share` of the text: by the hash of their names."""
    order = sorted(documents, key=lambda name: hashlib.sha256(f"{purpose}:{name}".encode()).digest())
    wanted = share * sum(len(text) for text in documents.values())
    first: dict[str, str] = {}
    second: dict[str, str] = {}
    taken = 0
    for name in order:
        part = second if taken < wanted else first
        part[name] = documents[name]
        taken += len(documents[name])
    return first, second


def _modules() -> dict[str, str]:
    """Sources of the modules at the top of the standard library, by file name."""
    folder = Path(sysconfig.get_path("stdlib"))
    return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py"))}


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _licence_files() -> Iterator[tuple[str, str]]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("LICENSE*")):
        yield "python", path.read_text(encoding="utf-8", errors="replace")
    for distribution in sorted(metadata.distributions(), key=lambda found: found.name or ""):
        for file in distribution.files or []:
            if _LICENCE_NAMES.match(file.name) and not file.name.endswith(".py"):
                path = Path(str(distribution.locate_file(file)))
                if path.is_file():
                    yield f"{distribution.name}/{file}", path.read_text(encoding="utf-8", errors="replace")
