"""The body of a commit: a header line, then one operation a line. Source: huggingface_hub/_commit_api.py."""

import base64
import binascii
import json
from collections.abc import Iterator
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError

from adapterhub.hub.errors import InvalidCommit, TooLarge
from adapterhub.hub.services.commits import AddLfs, AddRegular, DeleteFile, DeleteFolder, Operation

Line = TypeVar("Line", bound=BaseModel)

_LINE_OVERHEAD_BYTES = 64 << 10
"""What a line may hold besides the file's content: names, quotes, a long description."""


class Header(BaseModel):
    """The first line's value."""

    summary: str
    description: str = ""
    parentCommit: str | None = None  # noqa: N815  the client's spelling


class _File(BaseModel):
    path: str
    content: str
    encoding: str = "base64"


class _LfsFile(BaseModel):
    """size is absent for a copy."""

    path: str
    oid: str
    algo: str = "sha256"
    size: int | None = None


class _Deleted(BaseModel):
    path: str


def read_commit(body: IO[bytes], regular_max_bytes: int) -> tuple[Header, Iterator[Operation]]:
    """The header, and the operations, each parsed only when it is asked for.

    Raises InvalidCommit and TooLarge, for the operations when the faulty line is reached; both name the line.
    """
    lines = _lines(body, regular_max_bytes * 4 // 3 + _LINE_OVERHEAD_BYTES)
    number, key, value = next(lines, (1, None, None))
    if key != "header":
        raise InvalidCommit("the commit's first line is not its header; send {'key': 'header', 'value': {…}} first")
    return _parsed(Header, value, number), (_operation(n, k, v, regular_max_bytes) for n, k, v in lines)


def _lines(body: IO[bytes], limit_bytes: int) -> Iterator[tuple[int, str | None, Any]]:
    number = 0
    while line := body.readline(limit_bytes + 1):
        number += 1
        if len(line) > limit_bytes:
            raise TooLarge(
                f"line {number} of the commit is longer than {limit_bytes} bytes; send large files through Xet or LFS"
            )
        if not line.strip():
            continue
        try:
            parsed = json.loads(line)
        except ValueError as error:  # JSON and UTF-8 alike
            raise InvalidCommit(f"line {number} of the commit is not JSON: {error}") from None
        except RecursionError:
            raise InvalidCommit(f"line {number} of the commit is nested too deep") from None
        if not isinstance(parsed, dict):
            raise InvalidCommit(f"line {number} of the commit is not an object with `key` and `value`")
        yield number, parsed.get("key"), parsed.get("value")


def _operation(number: int, key: str | None, value: Any, regular_max_bytes: int) -> Operation:
    if key == "file":
        return _add_regular(_parsed(_File, value, number), number, regular_max_bytes)
    if key == "lfsFile":
        large = _parsed(_LfsFile, value, number)
        if large.algo != "sha256":
            raise InvalidCommit(f"{large.path}: algorithm {large.algo!r} in line {number}; only sha256 is known")
        return AddLfs(large.path, f"sha256:{large.oid}", large.size)
    if key == "deletedFile":
        return DeleteFile(_parsed(_Deleted, value, number).path)
    if key == "deletedFolder":
        return DeleteFolder(_parsed(_Deleted, value, number).path)
    raise InvalidCommit(
        f"line {number} of the commit has the unknown key {key!r}; known: file, lfsFile, deletedFile, deletedFolder"
    )


def _add_regular(file: _File, number: int, regular_max_bytes: int) -> AddRegular:
    if file.encoding != "base64":
        raise InvalidCommit(f"{file.path}: encoding {file.encoding!r} in line {number}; only base64 is known")
    try:
        content = base64.b64decode(file.content, validate=True)
    except binascii.Error as error:
        raise InvalidCommit(f"{file.path}: content in line {number} is not base64: {error}") from None
    if len(content) > regular_max_bytes:
        raise TooLarge(
            f"{file.path}: {len(content)} bytes inside a commit, at most {regular_max_bytes}; use Xet or LFS"
        )
    return AddRegular(file.path, content)


def _parsed(model: type[Line], value: Any, number: int) -> Line:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "value"
        raise InvalidCommit(f"line {number} of the commit: {where}: {first['msg']}") from None
