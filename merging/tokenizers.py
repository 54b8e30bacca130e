"""A model's tokenizer as data: which token has which id, and its files with tokens added or taken away.

Read as transformers reads it: `tokenizer.json`, else `vocab.json` with `merges.txt`, else `vocab.txt`, else the pieces
of a sentencepiece `tokenizer.model`; then the added and special tokens of `tokenizer_config.json`,
`special_tokens_map.json` and `added_tokens.json`, which transformers appends while it loads. Data in and data out:
nothing is executed, no tokenizer is built. Never imports torch.
Source: transformers 5.23 `tokenization_utils_base.py`, _from_pretrained, and `tokenization_utils_tokenizers.py`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import join, read_json
from adapterhub.merging.sentencepiece_files import pieces

MAX_FILE_BYTES = 128 * 1024 * 1024
"""Longest file of a tokenizer that is read; those of 256,000 tokens take some 35 MB."""

MAX_TOKENS = 1 << 22
"""Ids a tokenizer may have: sixteen times those of today's largest."""

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL, ADDED = "special_tokens_map.json", "added_tokens.json"
VOCAB, MERGES, WORDS, PIECES = "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"

_FILES = (
    "tokenizer*",
    SPECIAL,
    ADDED,
    VOCAB,
    MERGES,
    WORDS,
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.*",
)
_OTHERS = ("spiece.model", "sentencepiece.bpe.model")
"""Files of sentencepiece whose models number pieces in ways of their own."""
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before the model cuts it. special: left out when text is shown.

    single_word: only where no letter touches it; lstrip, rstrip: takes the spaces beside it; normalized: is looked for
    in the normalised text.
    """

    content: str
    special: bool = False
    normalized: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False

    @classmethod
    def of(cls, value: Any, file: str, *, special: bool | None = None) -> "AddedToken":
        """The token that a text or a JSON object means. Raises InvalidPatch."""
        if isinstance(value, str):
            value = {"content": value, "special": bool(special), "normalized": not special}
        if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
            raise InvalidPatch(f"{file}: {str(value)[:100]} is no added token; an object with its content is expected")
        flags = {key: bool(value[key]) for key in ("normalized", "single_word", "lstrip", "rstrip") if key in value}
        is_special = bool(value.get("special", False)) if special is None else special
        return cls(value["content"], is_special, **{"normalized": not is_special} | flags)


@dataclass(frozen=True)
class Tokenizer:
    """Which token has which id, added ones too, and the files it was read from.

    name: how messages call the model. ids: in ascending order. added: those of `ids` that are found before the model
    cuts the text. file: the main one, which has `own` of the tokens. prefix: where the files are in the folder.
    parsed: the JSON files by name.
    """

    name: str
    folder: Folder = field(repr=False, compare=False)
    prefix: str
    ids: Mapping[str, int]
    added: Mapping[str, AddedToken]
    file: str
    own: int
    parsed: Mapping[str, Mapping[str, Any]] = field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values(), default=-1) + 1

    def files(self) -> tuple[str, ...]:
        """Its files, the chat template's too, by their names in `prefix`."""
        start = join(self.prefix, "")
        inner = (name.removeprefix(start) for name in self.folder.names() if name.startswith(start))
        return tuple(name for name in inner if is_tokenizer_file(name))

    def read(self, name: str) -> bytes:
        """One of its files."""
        return self.folder.read(join(self.prefix, name))


def is_tokenizer_file(name: str) -> bool:
    """Whether a file beside a model's weights belongs to its tokenizer."""
    return any(fnmatchcase(name, pattern) for pattern in _FILES) and not name.endswith(".py")


def read_tokenizer(folder: Folder, prefix: str, name: str) -> Tokenizer | None:
    """The tokenizer beside a model; None where there is none. Raises InvalidPatch for files that make no sense."""
    there = {one for one in folder.names() if one.rpartition("/")[0] == prefix}
    parsed = {
        one: read_json(folder, join(prefix, one), limit_bytes=MAX_FILE_BYTES)
        for one in (TOKENIZER, CONFIG, SPECIAL, ADDED, VOCAB)
        if join(prefix, one) in there
    }
    file = next((one for one in (TOKENIZER, VOCAB, WORDS, PIECES) if join(prefix, one) in there), None)
    if file is None:
        if any(join(prefix, one) in there for one in _OTHERS):
            raise InvalidPatch(
                f"{name}: its tokenizer is stored as sentencepiece of its own kind; load it with transformers' "
                f"AutoTokenizer and save it, which writes {TOKENIZER}, to merge its vocabulary"
            )
        return None
    ids, added = _stored(folder, prefix, file, parsed)
    _check_ids(ids, join(prefix, file))
    own = len(ids)
    following = max(ids.values(), default=-1) + 1
    for one in _loaded(parsed):
        # As the tokenizers library does: a token that is there keeps its id, others come after the last.
        if one.content and one.content not in ids:
            ids[one.content], following = following, following + 1
        added.setdefault(one.content, one)
    in_order = dict(sorted(ids.items(), key=lambda item: (item[1], item[0])))
    return Tokenizer(name, folder, prefix, in_order, added, file, own, parsed)


def _stored(
    folder: Folder, prefix: str, file: str, parsed: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, int], dict[str, AddedToken]]:
    """Ids and added tokens that the main file says."""
    path = join(prefix, file)
    if file in (WORDS, PIECES):
        if folder.size(path) > MAX_FILE_BYTES:
            raise InvalidPatch(f"{path}: {folder.size(path)} bytes; at most {MAX_FILE_BYTES} are read")
        if file == PIECES:
            return {piece: number for number, piece in enumerate(pieces(folder.read(path), path))}, {}
        lines = folder.read(path).decode("utf-8", errors="replace").splitlines()
        return {word: number for number, word in enumerate(lines)}, {}
    if file == VOCAB:
        return dict(parsed[VOCAB]), {}
    model = parsed[TOKENIZER].get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: [token, score] in the order of ids
        if not all(isinstance(one, list) and one for one in vocab):
            raise InvalidPatch(f"{path}: its vocab is no list of tokens with their scores")
        vocab = {str(one[0]): number for number, one in enumerate(vocab)}
    if not isinstance(vocab, dict):
        raise InvalidPatch(f"{path}: has no model with a vocab")
    merges = model.get("merges", []) if isinstance(model, dict) else []
    if not isinstance(merges, list) or not all(isinstance(one, str) or _is_pair(one) for one in merges):
        raise InvalidPatch(f"{path}: its merges are no list of pairs of tokens")
    ids, added = dict(vocab), {}
    listed = parsed[TOKENIZER].get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InvalidPatch(f"{path}: its added_tokens are no list of objects")
    for one in listed:
        token = AddedToken.of(one, path)
        added[token.content] = token
        ids.setdefault(token.content, one.get("id"))
    return ids, added


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _loaded(parsed: Mapping[str, Mapping[str, Any]]) -> Iterator[AddedToken]:
    """What transformers adds while it loads, in its order: added tokens by id, named special ones, further ones."""
    config = dict(parsed.get(CONFIG, {}))
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        numbers = sorted((int(number), number) for number in decoder if str(number).isdecimal())
        yield from (AddedToken.of(decoder[key], CONFIG) for _, key in numbers)
    else:
        config |= parsed.get(SPECIAL, {})
        special = {_content(config.get(key)) for key in _NAMED}
        _check_ids(parsed.get(ADDED, {}), ADDED)
        listed = sorted(parsed.get(ADDED, {}).items(), key=lambda item: int(item[1]))
        yield from (AddedToken.of(token, ADDED, special=token in special) for token, _ in listed)
    for value in _special(config):
        yield AddedToken.of(value, CONFIG, special=True)


def _special(config: Mapping[str, Any]) -> list[Any]:
    found = [config[key] for key in _NAMED if config.get(key)]
    further: list[Any] = next((config[key] for key in _EXTRA if isinstance(config.get(key), list)), [])
    return found + further


def _content(value: Any) -> str | None:
    found = value.get("content") if isinstance(value, Mapping) else value
    return found if isinstance(found, str) else None


def _check_ids(ids: Mapping[str, Any], file: str) -> None:
    for token, number in ids.items():
        # type() and not isinstance: True is an int, and JSON's true is no id.
        if type(number) is not int or not 0 <= number < MAX_TOKENS:
            raise InvalidPatch(f"{file}: token {token[:60]!r} has id {str(number)[:40]}; 0 to {MAX_TOKENS - 1} are ids")


# ---- the same files with other tokens --------------------------------------------------------------------------------


def within(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """The tokenizer without the tokens whose ids have no row; as it is where all have one.

    Raises InvalidPatch where its post-processor puts in a token without a row, as each text would then need it.
    """
    beyond = {token for token, number in tokenizer.ids.items() if number >= rows}
    if not beyond:
        return tokenizer
    if tokenizer.file == PIECES and tokenizer.own > rows:
        raise InvalidPatch(
            f"{tokenizer.name}: {PIECES} has {tokenizer.own} pieces for {rows} rows; load it with transformers' "
            f"AutoTokenizer and save it, which writes {TOKENIZER}, from which tokens can be left out"
        )
    parsed = {name: _STRIPPED[name](value, beyond) for name, value in tokenizer.parsed.items()}
    if TOKENIZER in parsed:
        _check_put_in(parsed[TOKENIZER].get("post_processor"), rows, tokenizer.name)
    ids = {token: number for token, number in tokenizer.ids.items() if token not in beyond}
    added = {token: one for token, one in tokenizer.added.items() if token not in beyond}
    return replace(tokenizer, ids=ids, added=added, parsed=parsed)


def _without_tokens(value: Mapping[str, Any], beyond: set[str]) -> Mapping[str, Any]:
    model = dict(value["model"])
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [one for one in vocab if str(one[0]) not in beyond]
    else:
        model["vocab"] = {token: number for token, number in vocab.items() if token not in beyond}
    if "merges" in model:
        model["merges"] = [one for one in model["merges"] if not _touches(one, beyond)]
    added = [one for one in value.get("added_tokens") or [] if _content(one) not in beyond]
    return {**value, "model": model, "added_tokens": added}


def _touches(merge: Any, beyond: set[str]) -> bool:
    """Whether a merge takes or makes one of these tokens: "a b" or ["a", "b"] makes "ab"."""
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    return "".join(parts) in beyond or any(part in beyond for part in parts)


def _without_special(value: Mapping[str, Any], beyond: set[str]) -> Mapping[str, Any]:
    found = {key: one for key, one in value.items() if key not in _NAMED or _content(one) not in beyond}
    if isinstance(found.get("added_tokens_decoder"), dict):
        decoder = found["added_tokens_decoder"]
        found["added_tokens_decoder"] = {key: one for key, one in decoder.items() if _content(one) not in beyond}
    for key in _EXTRA:
        if isinstance(found.get(key), list):
            found[key] = [one for one in found[key] if _content(one) not in beyond]
    return found


def _without_keys(value: Mapping[str, Any], beyond: set[str]) -> Mapping[str, Any]:
    return {token: number for token, number in value.items() if token not in beyond}


_STRIPPED = {
    TOKENIZER: _without_tokens,
    CONFIG: _without_special,
    SPECIAL: _without_special,
    ADDED: _without_keys,
    VOCAB: _without_keys,
}


def _check_put_in(processor: Any, rows: int, name: str) -> None:
    """Raises InvalidPatch for a template that puts in an id without a row."""
    if not isinstance(processor, dict):
        return
    inner = processor.get("processors")
    for one in inner if isinstance(inner, list) else [processor]:
        special = one.get("special_tokens") if isinstance(one, dict) else None
        for token, told in special.items() if isinstance(special, dict) else ():
            ids = told.get("ids") if isinstance(told, dict) else None
            if any(type(number) is int and number >= rows for number in (ids if isinstance(ids, list) else ())):
                raise InvalidPatch(f"{name}: puts {token!r} into every text, and has {rows} rows, none for that token")


def written(tokenizer: Tokenizer, more: Sequence[AddedToken] = (), *, is_stripped: bool = False) -> dict[str, bytes]:
    """The tokenizer's files by name, with `more` tokens added after the last id; byte for byte where nothing changes.

    A token of `more` that has an id keeps it, and is found in the text before the model cuts it from now on.
    is_stripped: whether `within` took tokens away, which a sentencepiece file, that is then left out, would still have.
    """
    if not more and not is_stripped:
        return {name: tokenizer.read(name) for name in tokenizer.files()}
    parsed = {name: dict(value) for name, value in tokenizer.parsed.items()}
    tokens = dict(tokenizer.added) | {one.content: one for one in more}
    ids = numbered(tokenizer, more)
    entries = {ids[token]: one for token, one in tokens.items()}
    if TOKENIZER in parsed:
        listed = {_content(one): one for one in parsed[TOKENIZER].get("added_tokens") or []}
        news = (number for number, one in entries.items() if one.content not in listed)
        listed |= {entries[number].content: {"id": number, **asdict(entries[number])} for number in list(news)}
        parsed[TOKENIZER]["added_tokens"] = sorted(listed.values(), key=lambda one: ids[one["content"]])
    config = parsed.setdefault(CONFIG, {})
    if TOKENIZER not in parsed or isinstance(config.get("added_tokens_decoder"), dict):
        known = config.get("added_tokens_decoder") or {}
        config["added_tokens_decoder"] = {str(number): asdict(one) for number, one in sorted(entries.items())} | known
    if ADDED in parsed or tokenizer.file == PIECES:
        parsed.setdefault(ADDED, {}).update({one.content: ids[one.content] for one in more if _is_new(one, tokenizer)})
    found = {name: json_bytes(value) for name, value in parsed.items()}
    for name in tokenizer.files():
        if name in (MERGES, WORDS) and is_stripped:
            found[name] = _lines(tokenizer, name)
        elif name not in found and not (is_stripped and name != tokenizer.file and fnmatchcase(name, "*.model*")):
            found[name] = tokenizer.read(name)
    return found


def _is_new(token: AddedToken, tokenizer: Tokenizer) -> bool:
    return token.content not in tokenizer.ids


def numbered(tokenizer: Tokenizer, more: Iterable[AddedToken]) -> dict[str, int]:
    """Ids of the tokenizer's tokens and of `more`, which come after the last in their order; ascending."""
    ids, following = dict(tokenizer.ids), tokenizer.size
    for one in more:
        if one.content not in ids:
            ids[one.content], following = following, following + 1
    return ids


def _lines(tokenizer: Tokenizer, name: str) -> bytes:
    """`vocab.txt` or `merges.txt` with the lines of tokens that are left."""
    lines = tokenizer.read(name).decode("utf-8", errors="replace").splitlines()
    if name == WORDS:
        return ("\n".join(lines[: tokenizer.size]) + "\n").encode()
    kept = [one for one in lines if one.startswith("#version") or all(part in tokenizer.ids for part in _parts(one))]
    return ("\n".join(kept) + "\n").encode()


def _parts(merge: str) -> list[str]:
    parts = merge.split(" ")
    return [*parts, "".join(parts)]


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A configuration as transformers writes one."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
