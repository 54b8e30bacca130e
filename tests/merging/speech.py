"""Small real tokenizers, trained by the tokenizers library on a few words."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

ENGLISH = ["the patch goes on the base, and the base goes on", "a base and a patch make the model"]
LATIN = ["the patch est in base et base est in modo", "et modo patch in model facit"]
CODE = ["for base in patch: make(base, patch)", "if base and patch: model = make(patch)"]


def bpe(texts: list[str], size: int = 60, special: tuple[str, ...] = ("<s>", "</s>")) -> Tokenizer:
    """A byte-level BPE as GPT-2's and Llama 3's are, of so many tokens."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False)
    found.train_from_iterator(texts, trainer)
    return found


def saved(tokenizer: Tokenizer, folder: Path, *more: str | AddedToken, **named: Any) -> PreTrainedTokenizerFast:
    """Saved to `folder` as transformers does, with further tokens added; `named` as bos_token, eos_token and so on."""
    named = {"bos_token": "<s>", "eos_token": "</s>"} | named
    make: Any = PreTrainedTokenizerFast
    found: PreTrainedTokenizerFast = make(tokenizer_object=tokenizer, **named)
    found.add_tokens(list(more))
    found.save_pretrained(folder)
    return found


def loaded(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def changed(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes one away."""
    kept = {**json.loads(path.read_text()), **values} if path.exists() else values
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))
