"""Makes a model be used as its patches say: templates, tokens, names of classes; what cannot be applied is refused.

Imports transformers' objects only as they are given: an engine's process alone calls this.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapterhub.hub.errors import InvalidRequest, UnfitPatch
from adapterhub.hub.serving.loading import Loaded


def under(loaded: Loaded, contract: Mapping[str, Any]) -> Loaded:
    """The model as its patches' contract wants it used; the one given is not changed.

    Raises UnfitPatch, naming the key of the contract, for what this model or this service does not do.
    """
    for key, value in contract.items():
        if key not in _APPLIED:
            raise UnfitPatch(
                f"the patch's contract names {key}, which is not applied here, and it works wrongly without"
            )
        loaded = _APPLIED[key](loaded, value)
    return replace(loaded, contract=contract)


def check_prompt(loaded: Loaded, tokens: Sequence[int]) -> None:
    """Raises InvalidRequest for a prompt without the tokens that the contract demands."""
    for key, needs_all in (("indicator_tokens", False), ("invocation_tokens", True)):
        wanted = loaded.contract.get(key) or ()
        found = [_is_in(_ids(loaded, text), tokens) for text in wanted]
        if wanted and not (all(found) if needs_all else any(found)):
            names = " and ".join(wanted) if needs_all else " or ".join(wanted)
            raise InvalidRequest(f"the patch works on prompts that hold {names} ({key} of its contract)")


def _ids(loaded: Loaded, text: str) -> list[int]:
    tokenizer: Any = loaded.tokenizer
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _is_in(part: Sequence[int], whole: Sequence[int]) -> bool:
    return any(list(whole[at : at + len(part)]) == list(part) for at in range(len(whole) - len(part) + 1))


# ---- what is applied, key by key -------------------------------------------------------------------------------------


def _tokenizer(loaded: Loaded, key: str) -> Any:
    """A copy of the tokenizer, to be changed."""
    if loaded.tokenizer is None:
        raise UnfitPatch(f"the patch's contract names {key}, and the base has no tokenizer")
    return copy.deepcopy(loaded.tokenizer)


def _chat_template(loaded: Loaded, template: str) -> Loaded:
    tokenizer = _tokenizer(loaded, "chat_template")
    tokenizer.chat_template = template
    return replace(loaded, tokenizer=tokenizer)


def _added_tokens(loaded: Loaded, tokens: Sequence[str]) -> Loaded:
    """New tokens take the next free ids, whose rows the patch brings; the model must have rows for all of them."""
    tokenizer, embeddings = _tokenizer(loaded, "added_tokens"), loaded.model.get_input_embeddings()
    tokenizer.add_tokens(list(tokens))
    rows = getattr(embeddings, "num_embeddings", 0)
    if len(tokenizer) > rows:
        raise UnfitPatch(
            f"the patch adds tokens up to {tokens[-1]!r}, which makes {len(tokenizer)}; the base's embedding has "
            f"{rows} rows"
        )
    return replace(loaded, tokenizer=tokenizer)


def _label_map(loaded: Loaded, labels: Mapping[str, str]) -> Loaded:
    count = getattr(loaded.model.config, "num_labels", 0)
    if not type(loaded.model).__name__.endswith("Classification") or {int(one) for one in labels} != set(range(count)):
        raise UnfitPatch(
            f"the patch's label_map names classes {', '.join(labels)}; the model is a {type(loaded.model).__name__} of "
            f"{count} classes"
        )
    return loaded


def _pattern(loaded: Loaded, pattern: str) -> Loaded:
    if loaded.tokenizer is None or "{text}" not in pattern:
        raise UnfitPatch(f"the patch's pattern {pattern[:80]!r} has no {{text}}, where the input is to stand")
    return loaded


def _verbalizer(loaded: Loaded, words: Mapping[str, str]) -> Loaded:
    model: Any = loaded.model
    if model.get_output_embeddings() is None:
        raise UnfitPatch(
            f"the patch's verbalizer needs a language model's head; the base is {type(loaded.model).__name__}"
        )
    long = [word for word in words.values() if len(_ids(loaded, word)) != 1]
    if long or not words:
        raise UnfitPatch(f"the patch's verbalizer: {', '.join(long) or 'nothing'} is no single token of this base")
    return loaded


def _head(loaded: Loaded, path: str) -> Loaded:
    if path not in dict(loaded.model.named_modules()):
        raise UnfitPatch(
            f"the patch was trained with the head {path}, which {type(loaded.model).__name__} does not have"
        )
    return loaded


def _needs_tokenizer(key: str) -> Callable[[Loaded, Any], Loaded]:
    def check(loaded: Loaded, value: Any) -> Loaded:
        _tokenizer(loaded, key)
        return loaded

    return check


def _sampling_rate(loaded: Loaded, rate: int) -> Loaded:
    found = getattr(loaded.sound_processor, "sampling_rate", None)
    if found != rate:
        takes = f"takes {found} samples a second" if found else "takes no sounds"
        raise UnfitPatch(f"the patch's sampling_rate is {rate}, and {type(loaded.model).__name__} {takes}")
    return loaded


_APPLIED: Mapping[str, Callable[[Loaded, Any], Loaded]] = {
    "added_tokens": _added_tokens,
    "chat_template": _chat_template,
    "head": _head,
    "indicator_tokens": _needs_tokenizer("indicator_tokens"),
    "invocation_tokens": _needs_tokenizer("invocation_tokens"),
    "label_map": _label_map,
    "pattern": _pattern,
    "sampling_rate": _sampling_rate,
    "verbalizer": _verbalizer,
}
