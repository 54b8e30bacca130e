"""Tagged tokens of a text as the entities that they make up, in plain numbers and words.

A token and an entity are what the Hugging Face inference API shows: {entity or entity_group, score, word, start, end}.
Source: transformers' pipeline("token-classification"), whose results these are; Ramshaw & Marcus 1995 for B- and I-.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Json = dict[str, Any]


def grouped(tokens: Iterable[Json], joined: Callable[[Sequence[str]], str]) -> list[Json]:
    """Neighbours of one type as one entity with their mean score; B- begins another, no prefix counts as I-.

    joined: the text of tokens as the tokenizer writes it.
    """
    groups: list[list[Json]] = []
    for token in tokens:
        if groups and not token["entity"].startswith("B-") and _type(token) == _type(groups[-1][-1]):
            groups[-1].append(token)
        else:
            groups.append([token])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": sum(token["score"] for token in group) / len(group),
            "word": joined([token["word"] for token in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _type(token: Json) -> str:
    tag: str = token["entity"]
    return tag[2:] if tag.startswith(("B-", "I-")) else tag


def without_overlaps(entities: Iterable[Json]) -> list[Json]:
    """By their start; of entities that begin inside each other the longest, of equally long ones the likeliest."""
    kept: list[Json] = []
    for entity in sorted(entities, key=lambda one: one["start"]):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        elif _rank(entity) > _rank(kept[-1]):
            kept[-1] = entity
    return kept


def _rank(entity: Json) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
