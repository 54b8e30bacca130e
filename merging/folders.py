"""Files of one repository revision or local folder, read lazily, and JSON: read strictly, written canonically."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from adapterhub.merging.errors import InvalidPatch

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

MAX_JSON_BYTES = 16 * 1024 * 1024
"""Longest configuration or shard index that is parsed."""


class Folder(Protocol):
    """The files of one repository revision or local folder, read lazily. Paths are relative, with "/".

    Every method that takes a name raises FileNotFoundError for one that is not in `names()`.
    """

    def names(self) -> Sequence[str]:
        """Paths of all files, sorted."""

    def size(self, name: str) -> int:
        """Bytes of the file."""

    def digest(self, name: str) -> str:
        """sha256 of the content, as "sha256:<hex>"."""

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end); end None or past the end means the end."""

    def path(self, name: str) -> Path:
        """A plain local file with the content, fit for mmap; may fetch it first."""


class LocalFolder:
    """A folder of this machine. Links are followed, as snapshots of the huggingface_hub cache are made of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._digests: dict[str, str] = {}

    def names(self) -> Sequence[str]:
        found = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in found if path.parts[0] != ".git")

    def size(self, name: str) -> int:
        return self.path(name).stat().st_size

    def digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = file_digest(self.path(name))
        return self._digests[name]

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        return _read_range(self.path(name), start, end)

    def path(self, name: str) -> Path:
        if not is_inside(name):
            raise FileNotFoundError(f"{name}: not a path inside {self.root}")
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(f"{name}: no such file in {self.root}")
        return path


@dataclass(frozen=True)
class MappedFile:
    """One file of a MappedFolder: where its bytes are, their digest ("sha256:<hex>") and number."""

    path: Path
    digest: str
    size_bytes: int


class MappedFolder:
    """Files under names of the caller's choice, their digests known beforehand: how stored blobs are handed over."""

    def __init__(self, files: Mapping[str, MappedFile | tuple[Path, str, int]]) -> None:
        self.files = {name: one if isinstance(one, MappedFile) else MappedFile(*one) for name, one in files.items()}

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns into an equal folder, in this or another process."""
        return {name: [str(one.path), one.digest, one.size_bytes] for name, one in sorted(self.files.items())}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The folder that `to_json` described."""
        return cls({name: (Path(path), str(digest), int(size)) for name, (path, digest, size) in value.items()})

    def names(self) -> Sequence[str]:
        return sorted(self.files)

    def size(self, name: str) -> int:
        return self._file(name).size_bytes

    def digest(self, name: str) -> str:
        return self._file(name).digest

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        return _read_range(self._file(name).path, start, end)

    def path(self, name: str) -> Path:
        return self._file(name).path

    def _file(self, name: str) -> MappedFile:
        if name not in self.files:
            raise FileNotFoundError(f"{name}: no such file among {len(self.files)}")
        return self.files[name]


def _read_range(path: Path, start: int, end: int | None) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read() if end is None else file.read(max(0, end - start))


def file_digest(path: Path) -> str:
    """sha256 of a file's content, as "sha256:<hex>", in bounded memory."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def is_inside(name: str) -> bool:
    """Whether `name` is a plain relative path, which no joining can lead out of its folder."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts)


def join(folder: str, name: str) -> str:
    """`name` inside `folder`, where "" is the root."""
    return f"{folder}/{name}" if folder else name


class Beside:
    """A folder with others below it, each under a name that no patch has: how a patch finds another it refers to."""

    def __init__(self, folder: Folder, others: Sequence[Folder]) -> None:
        self._folders = {"": folder} | {f"@beside-{number}/": one for number, one in enumerate(others)}

    def names(self) -> Sequence[str]:
        return sorted(prefix + name for prefix, one in self._folders.items() for name in one.names())

    def size(self, name: str) -> int:
        folder, inner = self._find(name)
        return folder.size(inner)

    def digest(self, name: str) -> str:
        folder, inner = self._find(name)
        return folder.digest(inner)

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        folder, inner = self._find(name)
        return folder.read(inner, start, end)

    def path(self, name: str) -> Path:
        folder, inner = self._find(name)
        return folder.path(inner)

    def _find(self, name: str) -> tuple[Folder, str]:
        prefix = next((one for one in self._folders if one and name.startswith(one)), "")
        return self._folders[prefix], name.removeprefix(prefix)


class Remembering:
    """A folder of which only some names are seen, and whose JSON files are parsed once: many kinds look at each."""

    def __init__(self, folder: Folder, names: Sequence[str]) -> None:
        self._names = names
        self.size, self.digest, self.read, self.path = folder.size, folder.digest, folder.read, folder.path
        self.parsed: dict[str, dict[str, Any]] = {}

    def names(self) -> Sequence[str]:
        return self._names


def read_json(folder: Folder, name: str, *, limit_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file, not to be changed. Raises InvalidPatch for anything else, duplicate keys and NaN."""
    if not isinstance(folder, Remembering):
        return _parse_json(folder, name, limit_bytes)
    if name not in folder.parsed:
        folder.parsed[name] = _parse_json(folder, name, limit_bytes)
    return folder.parsed[name]


def _parse_json(folder: Folder, name: str, limit_bytes: int) -> dict[str, Any]:
    if folder.size(name) > limit_bytes:
        raise InvalidPatch(f"{name}: {folder.size(name)} bytes of JSON; at most {limit_bytes} are read")
    try:
        value = strict_json(folder.read(name))
    except ValueError as error:
        raise InvalidPatch(f"{name}: not a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise InvalidPatch(f"{name}: holds a JSON {type(value).__name__}; an object is expected")
    return value


class DuplicateKey(ValueError):
    """A JSON object with the same key twice: two readers may take different values."""


def strict_json(raw: bytes) -> Any:
    """Raises ValueError for what is not UTF-8 JSON without duplicate keys, NaN, lone surrogates or extreme nesting."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise DuplicateKey(f"key {twice[:100]!r} occurs twice")
        return found

    def refuse_constant(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _SURROGATE.search(raw):
        json.dumps(value, ensure_ascii=False).encode()  # a pair is a character and passes, half of one does not
    return value


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys, no spaces, shortest floats: equal values give equal bytes.

    1 and 1.0 are different numbers here. Raises ValueError for NaN and infinity.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def json_digest(value: Any) -> str:
    """sha256 of the canonical JSON, as "sha256:<hex>"."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()
