"""Git object ids, computed as git computes them (SHA-1 over "type size NUL content").

Source: git's Documentation/gitformat-*; the pointer text is git-lfs docs/spec.md. Tested against the git binary.
"""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime

FILE_MODE = "100644"
FOLDER_MODE = "40000"


def object_oid(kind: str, content: bytes) -> str:
    """The id of the object of that kind ("blob", "tree", "commit") and content."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def blob_oid(content: bytes) -> str:
    """The id of a file whose content is `content`."""
    return object_oid("blob", content)


def pointer_text(digest: str, size_bytes: int) -> bytes:
    """What git stores in place of a large file. digest: "sha256:<hex>" of the file."""
    return f"version https://git-lfs.github.com/spec/v1\noid {digest}\nsize {size_bytes}\n".encode()


def tree_oid(entries: Iterable[tuple[str, str, str]]) -> str:
    """The id of a folder. entries: (mode, name, oid) in any order; git sorts folders as if their name ended in "/"."""
    return object_oid("tree", tree_content(entries))


def tree_content(entries: Iterable[tuple[str, str, str]]) -> bytes:
    """What git stores for a folder. entries: as `tree_oid` takes them."""
    ordered = sorted(entries, key=lambda e: e[1].encode() + (b"/" if e[0] == FOLDER_MODE else b""))
    return b"".join(f"{m} {n}\0".encode() + bytes.fromhex(oid) for m, n, oid in ordered)


def commit_oid(
    tree: str, parents: Sequence[str], author_name: str, author_email: str, committed_at: datetime, message: str
) -> str:
    """The id of a commit whose author is its committer. committed_at: with zone; whole seconds count, shown as UTC."""
    return object_oid("commit", commit_content(tree, parents, author_name, author_email, committed_at, message))


def commit_content(
    tree: str, parents: Sequence[str], author_name: str, author_email: str, committed_at: datetime, message: str
) -> bytes:
    """What git stores for a commit; the arguments as `commit_oid` takes them."""
    who = f"{author_name} <{author_email}> {int(committed_at.timestamp())} +0000"
    lines = [f"tree {tree}", *(f"parent {p}" for p in parents), f"author {who}", f"committer {who}", "", message]
    return "\n".join(lines).encode()
