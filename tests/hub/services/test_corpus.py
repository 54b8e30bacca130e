"""Headers of real public cards, as found: each is taken in, and says what it was made from or why it does not."""

import json
from pathlib import Path

import pytest

from adapterhub.hub.errors import InvalidCard
from adapterhub.hub.services import cards

CORPUS = Path(__file__).parents[2] / "corpus"
ROWS = [json.loads(line) for line in (CORPUS / "index.jsonl").read_text().splitlines()]
CARDS = [row["file"] for row in ROWS if row["file"].startswith("cards/")]


@pytest.mark.parametrize("file", CARDS)
def test_a_card_is_read_or_refused_with_a_sentence(file: str) -> None:
    raw = (CORPUS / file).read_bytes()
    try:
        card = cards.parse(raw)
    except InvalidCard as refused:
        sentence = str(refused)
        assert 20 < len(sentence) < 400
        return
    assert all(isinstance(name, str) for name in card.texts("base_model"))
    assert "base_model" not in card.data or card.texts("base_model") or "{" in raw.decode()
