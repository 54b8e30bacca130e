"""Which names are allowed: of accounts, repositories, refs and paths. Nothing is mended: a name is right or refused."""

import re
import unicodedata

from adapterhub.hub.errors import InvalidName, InvalidPath, NameReserved

RESERVED = frozenset(
    """
    about accessibility accounts activity alias aliases analysis api archive assets auth billing blog bases buckets
    campaigns catalogue chat collections compare contact datasets docs download downloads evaluations explore
    favicon.ico feed files front-end generate generate_stream health healthz help home huggingface info jobs join
    kernels legal licences login logout manual merge merges metrics model models new notifications oauth
    openapi.json org organisations organizations orgs patch patches ping port ports pricing privacy profile public
    ready recipe recipes redoc refs register resolve robots.txt root search security serving settings signup
    sitemap.xml spaces static status storage studio support system terms token tokens tree upload uploads user users
    v1 v2 web well-known .well-known whoami xet null undefined none
    """.split()  # noqa: SIM905  a list of words reads best as words
)
"""First path segments that are pages or routes, or may become so; no account may have such a name."""

_WORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_NAME_LENGTH = 96
_WINDOWS_DEVICES = frozenset({"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)})
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})
_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_FULL_OID = re.compile(r"[0-9a-fA-F]{40}")

PATH_BYTES = 1024
SEGMENT_BYTES = 255
PATH_DEPTH = 32


def name_key(name: str) -> str:
    """The form in which two account names that look alike are equal: case-folded, without "-", "_" and "."."""
    return re.sub(r"[-_.]", "", name.casefold())


def check_account_name(name: str) -> str:
    """`name` itself. Raises InvalidName, or NameReserved for the name of a page or route."""
    _check_word(name, "account name")
    if name.casefold() in RESERVED or name_key(name) in RESERVED:
        raise NameReserved(f"{name}: reserved for a page of this service; choose another account name")
    if not name_key(name):
        raise InvalidName(f"{name}: an account name needs a letter or digit")
    return name


def check_repo_id(repo_id: str) -> tuple[str, str]:
    """Namespace and name of `repo_id`. Raises InvalidName when it is not "namespace/name" of allowed words."""
    namespace, slash, name = repo_id.partition("/")
    if not slash or "/" in name:
        raise InvalidName(f"{_shown(repo_id)}: write a repository as namespace/name")
    _check_word(namespace, "namespace")
    _check_word(name, "repository name")
    return namespace, name


def check_ref_name(name: str) -> str:
    """`name` itself, a short branch or tag name. Raises InvalidName by git's rules, and for what reads as an oid."""
    parts = name.split("/")
    problem = (
        "must not be empty or '@'"
        if name in ("", "@")
        else "is longer than 200 characters"
        if len(name) > 200
        else "holds a character or sequence that git forbids in refs"
        if _REF_FORBIDDEN.search(name) or not name.isprintable()
        else "has a part that is empty, starts with '.' or '-', or ends in '.' or '.lock'"
        if any(not p or p[0] in ".-" or p.endswith((".lock", ".")) for p in parts)
        else "starts with 'refs/', which is for full names"
        if parts[0] == "refs"
        else "reads as a commit id"
        if _FULL_OID.fullmatch(name) or name == "HEAD"
        else None
    )
    if problem:
        raise InvalidName(f"branch or tag {_shown(name)} {problem}")
    return name


def check_path(path: str) -> str:
    """`path` itself, a file's path in a repository. Raises InvalidPath naming what is wrong; nothing is normalised."""
    problem = _path_problem(path)
    if problem:
        raise InvalidPath(f"path {_shown(path)} {problem}; nothing was stored")
    return path


def is_storable(text: str) -> bool:
    """Whether both databases can compare a column with `text`: they take no NUL and no lone surrogates."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def path_key(path: str) -> str:
    """The form in which two paths that a file system may confuse are equal."""
    return unicodedata.normalize("NFKC", path.casefold())


def _path_problem(path: str) -> str | None:
    if any(unicodedata.category(c) in _HIDDEN_CATEGORIES for c in path):
        return "holds a control, invisible or unassigned character"
    if unicodedata.normalize("NFC", path) != path:
        return "is not in Unicode's NFC form"
    if "\\" in path or re.match(r"[A-Za-z]:", path):
        return "is written in Windows' way; use '/'"
    if len(path.encode()) > PATH_BYTES:
        return f"is longer than {PATH_BYTES} bytes"
    segments = path.split("/")
    if len(segments) > PATH_DEPTH:
        return f"is deeper than {PATH_DEPTH} folders"
    return next((problem for s in segments if (problem := _segment_problem(s))), None)


def _segment_problem(segment: str) -> str | None:
    if segment in ("", ".", ".."):
        return "has an empty, '.' or '..' segment"
    if segment.casefold() in (".git", "git~1"):
        return "reaches into '.git'"
    if segment[-1] in ". " or segment[0] == " ":
        return "has a segment that starts with a space or ends in a space or dot"
    if segment.split(".")[0].casefold() in _WINDOWS_DEVICES:
        return f"has the segment {segment!r}, a device on Windows"
    if len(segment.encode()) > SEGMENT_BYTES:
        return f"has a segment longer than {SEGMENT_BYTES} bytes"
    return None


def _check_word(word: str, what: str) -> None:
    if len(word) > _NAME_LENGTH or not _WORD.fullmatch(word):
        raise InvalidName(
            f"{_shown(word)}: a {what} is 1 to {_NAME_LENGTH} of A-Z a-z 0-9 . _ - and starts with a letter or digit"
        )
    if "--" in word or ".." in word or word.casefold().endswith((".git", ".lock")):
        raise InvalidName(f"{word}: a {what} holds no '--' or '..' and does not end in .git or .lock")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + "…")
