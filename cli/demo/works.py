"""What the demo makes: each work trains one model or patch, saves it with its card, and tells its held-out measure.

A work runs in a process of the workshop. Everything random has a fixed seed and each process computes with one thread,
so two runs on one kind of machine give the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.cli.demo import cards, digits, language, texts, vision
from adapterhub.cli.demo.training import Report, Schedule
from adapterhub.merging import native
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.fingerprint import fingerprint
from adapterhub.merging.folders import LocalFolder

if TYPE_CHECKING:
    from torch import Tensor

NAMESPACE = "demo"


@dataclass(frozen=True)
class Sizes:
    """How large the models are and how long each is trained; steps, and bytes of held-out text to measure on."""

    hidden: int = 128
    layers: int = 4
    base_steps: int = 800
    second_steps: int = 300
    tune_steps: int = 220
    digits_steps: int = 400
    digits_tune_steps: int = 160
    held_out_bytes: int = 8_000
    asked_images: int = 60


FULL = Sizes()
FAST = Sizes(64, 2, 60, 30, 30, 150, 60, 2_000, 10)
"""For a test of the whole: everything happens, nothing is learned well."""


@dataclass(frozen=True)
class Work:
    """One repository to be.

    name: of the repository and of its folder. kind: "model" or the patch kind. corpus: what it is trained on, a corpus
    or a task of the digits. base: the work it starts from, None for random weights. measure: "language" or "vision".
    """

    name: str
    kind: str
    corpus: str
    base: str | None = None
    measure: str = "language"

    @property
    def repo_id(self) -> str:
        return f"{NAMESPACE}/{self.name}"


WORKS = (
    Work("base", "model", "prose"),
    Work("digits", "model", "upright", measure="vision"),
    Work("rotated", "lora", "rotated", "digits", "vision"),
    Work("mirrored", "lora", "mirrored", "digits", "vision"),
    Work("inverted", "lora", "inverted", "digits", "vision"),
    Work("digits-v2", "model", "upright", "digits", "vision"),
    Work("rotated-for-v2", "lora", "rotated", "digits-v2", "vision"),
    Work("base-v2", "model", "new prose", "base"),
    Work("code", "lora", "code", "base"),
    Work("code-for-v2", "lora", "code", "base-v2"),
    Work("licences", "lora", "licences", "base"),
    Work("licences-for-v2", "lora", "licences", "base-v2"),
    Work("names", "sparse", "names", "base"),
    Work("docstrings", "mask", "docstrings", "base"),
)
"""In the order they are begun, as far as their bases allow."""


@cache
def corpora() -> Mapping[str, texts.Corpus]:
    """Every text of the demo by name, read once in a process."""
    old, new = texts.prose()
    return {one.name: one for one in (old, new, texts.code(), texts.licences(), texts.names(), texts.docstrings())}


@cache
def split() -> digits.Split:
    """The digits in their three parts, read once in a process."""
    return digits.load()


def make(work: Work, folder: Path, sizes: Sizes, report: Report) -> float:
    """Train the work, save it as folder/<name>, and give what it measures on held-out text or images of its own kind.

    The base, where there is one, is read from folder/<base>. Nats per byte for texts, a fraction for digits.
    """
    makers: Mapping[tuple[str, str], Callable[[Work, Path, Sizes, Report], float]] = {
        ("language", "model"): _make_language_model,
        ("language", "lora"): _make_language_lora,
        ("language", "sparse"): _make_native,
        ("language", "mask"): _make_native,
        ("vision", "model"): _make_vision_model,
        ("vision", "lora"): _make_vision_lora,
    }
    measured = makers[work.measure, work.kind](work, folder, sizes, report)
    cards.write(folder / work.name, work, measured)
    return measured


def load_language(path: Path, adapter: Path | None = None) -> Any:
    """The language model saved in a folder, with a LoRA from another folder attached by peft where one is given."""
    from transformers import LlamaForCausalLM

    return _with_adapter(LlamaForCausalLM.from_pretrained(path), adapter)


def load_vision(path: Path, adapter: Path | None = None) -> Any:
    """The image classifier saved in a folder, with a LoRA from another folder attached by peft where one is given."""
    from transformers import ViTForImageClassification

    return _with_adapter(ViTForImageClassification.from_pretrained(path), adapter)


def measure_language(path: Path, adapter: Path | None, held_out_bytes: int) -> dict[str, float]:
    """Nats per byte of the model on about so many held-out bytes of each corpus, by the corpus's name."""
    model = load_language(path, adapter)
    return {name: language.nats_per_byte(model, one.test, held_out_bytes) for name, one in corpora().items()}


def measure_vision(path: Path, adapter: Path | None) -> dict[str, float]:
    """Accuracy of the model on the held-out digits in each of their tasks."""
    model = load_vision(path, adapter)
    return {task: vision.accuracy(model, split().test.as_task(task)) for task in digits.TASKS}


def fingerprint_of(path: Path) -> str:
    """The fingerprint of the model saved in a folder, "sha256:<hex>"."""
    return fingerprint(Checkpoint.open(LocalFolder(path))).root


def _with_adapter(model: Any, adapter: Path | None) -> Any:
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter)


def _make_language_model(work: Work, folder: Path, sizes: Sizes, report: Report) -> float:
    corpus = corpora()[work.corpus]
    if work.base is None:
        model = language.new_model(seed=0, hidden=sizes.hidden, layers=sizes.layers)
        schedule = Schedule(sizes.base_steps, 3e-3)
    else:
        model = load_language(folder / work.base)
        schedule = Schedule(sizes.second_steps, 5e-4)
    language.train(model, corpus.train, schedule, seed=1, report=report)
    model.save_pretrained(folder / work.name)
    language.new_tokenizer().save_pretrained(folder / work.name)
    return language.nats_per_byte(model, corpus.test, sizes.held_out_bytes)


def _make_language_lora(work: Work, folder: Path, sizes: Sizes, report: Report) -> float:
    assert work.base is not None
    corpus = corpora()[work.corpus]
    schedule = Schedule(sizes.tune_steps, 3e-3)
    tuned = language.tune_lora(load_language(folder / work.base), corpus.train, schedule, 2, report)
    _save_lora(tuned, work.base, folder / work.name)
    return language.nats_per_byte(tuned, corpus.test, sizes.held_out_bytes)


def _make_native(work: Work, folder: Path, sizes: Sizes, report: Report) -> float:
    """A sparse or a mask patch in the native format. Measured as it is used: base plus patch."""
    assert work.base is not None
    corpus = corpora()[work.corpus]
    model = load_language(folder / work.base)
    before = language.weights(model)
    tunings: Mapping[str, tuple[Callable[..., language.Selection], float]] = {
        "sparse": (language.tune_sparse, 2e-3),
        "mask": (language.tune_mask, 1e-3),
    }
    tune, lr = tunings[work.kind]
    changes = tune(model, corpus.train, Schedule(sizes.tune_steps, lr), 2, report)
    native.write_patch(
        folder / work.name,
        sites={name: _term(work.kind, mask, delta) for name, (mask, delta) in changes.items()},
        base=_training_base(work.base, folder / work.base),
        provenance={"method": {"sparse": "lt-sft", "mask": "grafting"}[work.kind], "seed": 2},
    )
    language.restore(model, before, {name: mask * delta for name, (mask, delta) in changes.items()})
    return language.nats_per_byte(model, corpus.test, sizes.held_out_bytes)


def _term(kind: str, mask: Tensor, delta: Tensor) -> native.StoredTerm:
    if kind == "mask":
        return native.select(mask.numpy(), delta.numpy())
    return native.sparse((mask * delta).numpy())


def _training_base(name: str, folder: Path) -> dict[str, Any]:
    found = fingerprint(Checkpoint.open(LocalFolder(folder)))
    return {
        "repo_id": f"{NAMESPACE}/{name}",
        "model_type": "llama",
        "quantization": None,
        "fingerprint": {"algo": "sha256-tensor-v1", "root": found.root, "params": dict(found.parameters)},
    }


def _make_vision_model(work: Work, folder: Path, sizes: Sizes, report: Report) -> float:
    parts = split()
    if work.base is None:
        model, images = vision.new_model(seed=0), parts.old
        schedule = Schedule(sizes.digits_steps, 2e-3)
    else:
        model, images = load_vision(folder / work.base), parts.new
        schedule = Schedule(sizes.digits_tune_steps, 5e-4)
    vision.train(model, images.as_task(work.corpus), schedule, seed=1, report=report)
    model.save_pretrained(folder / work.name)
    vision.new_processor().save_pretrained(folder / work.name)
    return vision.accuracy(model, parts.test.as_task(work.corpus))


def _make_vision_lora(work: Work, folder: Path, sizes: Sizes, report: Report) -> float:
    assert work.base is not None
    schedule = Schedule(sizes.digits_tune_steps, 5e-3)
    images = split().old.as_task(work.corpus)
    tuned = vision.tune_lora(load_vision(folder / work.base), images, schedule, 2, report)
    _save_lora(tuned, work.base, folder / work.name)
    return vision.accuracy(tuned, split().test.as_task(work.corpus))


def _save_lora(tuned: Any, base: str, folder: Path) -> None:
    """Save as peft does, the base named as the repository it will be."""
    tuned.peft_config["default"].base_model_name_or_path = f"{NAMESPACE}/{base}"
    # "auto" would ask the network whether the base's vocabulary was resized
    tuned.save_pretrained(folder, save_embedding_layers=False)
