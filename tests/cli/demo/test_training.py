"""The demo at a tiny size: models learn, patches touch what they say, and what is saved measures as it did."""

from pathlib import Path

import numpy as np
import pytest
import torch

from adapterhub.cli.demo import digits, language, vision, works
from adapterhub.cli.demo.training import Schedule, largest_changes
from adapterhub.cli.demo.works import Sizes, Work
from adapterhub.hub.services import cards
from adapterhub.merging import native, patches
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.folders import LocalFolder

pytestmark = pytest.mark.slow

TINY = Sizes(32, 1, 12, 6, 9, 30, 10, 500, 2)
TEXT = b"the quick brown fox jumps over the lazy dog. " * 60


def quiet(done: int, total: int, loss: float) -> None:
    """A report to nobody."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and each kind of language patch on it."""
    folder = tmp_path_factory.mktemp("made")
    for work in works.WORKS:
        if work.name in {"base", "code", "names", "docstrings"}:
            works.make(work, folder, TINY, quiet)
    return folder


def test_training_lowers_the_loss_on_its_text() -> None:
    model = language.new_model(0, hidden=32, layers=1)
    before = language.nats_per_byte(model, TEXT)
    language.train(model, TEXT, Schedule(30, 3e-3), 0, quiet)
    assert language.nats_per_byte(model, TEXT) < before - 0.5


def test_training_twice_gives_the_same_weights() -> None:
    twins = [language.new_model(0, hidden=32, layers=1) for _ in range(2)]
    for twin in twins:
        language.train(twin, TEXT, Schedule(3, 3e-3), 0, quiet)
    first, second = (language.weights(twin) for twin in twins)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_untrained_model_is_as_unsure_as_a_die_with_257_sides() -> None:
    loss = language.nats_per_byte(language.new_model(0, hidden=32, layers=1), TEXT)
    assert loss == pytest.approx(np.log(257), abs=0.2)


def test_the_tokenizer_gives_each_byte_its_own_number() -> None:
    tokenizer = language.new_tokenizer()
    text = "Grüße, 世界\n"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.eos_token_id == 256


def test_the_chat_template_joins_messages() -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert language.new_tokenizer().apply_chat_template(messages, tokenize=False) == "one\n\ntwo"


def test_the_largest_changes_are_chosen_over_all_matrices_together() -> None:
    before = {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2), "norm": torch.zeros(2)}
    after = {"a": torch.tensor([[0.1, -9.0], [0.2, 0.3]]), "b": torch.tensor([[5.0, 0.0], [0.0, 0.0]])}
    kept = largest_changes(before, {**after, "norm": torch.ones(2)}, density=0.25)
    assert kept["a"].tolist() == [[False, True], [False, False]]
    assert kept["b"].tolist() == [[True, False], [False, False]]
    assert "norm" not in kept


def test_sparse_tuning_moves_only_the_entries_it_keeps() -> None:
    model = language.new_model(0, hidden=32, layers=1)
    before = language.weights(model)
    changes = language.tune_sparse(model, TEXT, Schedule(9, 3e-3), 0, quiet, density=0.05)
    after = language.weights(model)
    for name, weight in after.items():
        moved = weight != before[name]
        mask = changes[name][0] if name in changes else torch.zeros_like(moved)
        assert not (moved & ~mask).any(), name
    kept = sum(int(mask.sum()) for mask, _ in changes.values())
    matrices = sum(weight.numel() for weight in before.values() if weight.ndim == 2)
    assert kept == pytest.approx(0.05 * matrices, rel=0.02)


@pytest.mark.parametrize(("name", "kind"), [("code", "lora"), ("names", "sparse"), ("docstrings", "mask")])
def test_patches_are_recognised_and_fit_their_base(made: Path, name: str, kind: str) -> None:
    (facts,) = patches.inspect(LocalFolder(made / name))
    assert facts.kind == kind
    assert facts.base.name == "demo/base"
    assert not facts.problems
    patches.read(LocalFolder(made / name), base=Checkpoint.open(LocalFolder(made / "base")))


def test_native_patches_carry_the_digest_of_their_weights(made: Path) -> None:
    assert native.read_manifest(LocalFolder(made / "names"))["base"]["fingerprint"]["root"].startswith("sha256:")


def test_cards_parse_and_carry_the_measure(made: Path) -> None:
    for name in ("base", "code", "names", "docstrings"):
        content = (made / name / "README.md").read_bytes()
        assert cards.validate(content) == []
        (result,) = cards.parse(content).data["model-index"][0]["results"]
        assert 0 < result["metrics"][0]["value"] < 7


def test_a_saved_lora_measures_as_it_did_when_it_was_trained(made: Path) -> None:
    work = next(one for one in works.WORKS if one.name == "code")
    (result,) = cards.parse((made / "code" / "README.md").read_bytes()).data["model-index"][0]["results"]
    again = works.measure_language(made / "base", made / "code", TINY.held_out_bytes)
    assert again[work.corpus] == pytest.approx(result["metrics"][0]["value"], abs=1e-4)


def test_the_image_classifier_learns_digits_and_its_lora_a_task(tmp_path: Path) -> None:
    sizes = Sizes(digits_steps=60, digits_tune_steps=40)
    base = works.make(Work("digits", "model", "upright", measure="vision"), tmp_path, sizes, quiet)
    tuned = works.make(Work("inverted", "lora", "inverted", "digits", "vision"), tmp_path, sizes, quiet)
    plain = works.measure_vision(tmp_path / "digits", None)
    assert base == plain["upright"] > 0.6
    assert tuned > plain["inverted"] + 0.2


def test_the_saved_processor_makes_the_pixels_that_were_trained_on() -> None:
    from PIL import Image

    images = np.arange(64, dtype=np.uint8).reshape(1, 8, 8) * 4
    one = digits.Digits(images, np.array([0]))
    picture = Image.fromarray(one.images[0]).convert("RGB")
    processed = vision.new_processor()(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processed, vision._pixels(images))


def test_a_limited_measure_looks_at_the_whole_text() -> None:
    torch.manual_seed(0)
    model = language.new_model(0, hidden=32, layers=1)
    easy, hard = b"a" * 9_700, bytes(torch.randint(0, 256, (9_700,), dtype=torch.uint8).tolist())
    language.train(model, easy, Schedule(20, 3e-3), 0, quiet)
    parts = [language.nats_per_byte(model, text) for text in (easy, hard)]
    assert language.nats_per_byte(model, easy + hard, 960) == pytest.approx(sum(parts) / 2, rel=0.1)
    assert language.nats_per_byte(model, easy + hard, 10**9) == language.nats_per_byte(model, easy + hard)
