"""The cards (README.md) of what the demo makes: front matter that the hub reads, and a few words for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.cli.demo.works import Work

_MANNERS = {
    "prose": "English prose of Python's manual",
    "new prose": "prose of Python's manual that version 1 never saw",
    "code": "sources of Python's standard library",
    "licences": "licence texts of Python and its packages",
    "names": "names of Unicode's characters",
    "docstrings": "docstrings of Python's standard library",
    "upright": "scikit-learn's handwritten digits",
    "rotated": "scikit-learn's handwritten digits, turned by a quarter",
    "mirrored": "scikit-learn's handwritten digits, mirrored left to right",
    "inverted": "scikit-learn's handwritten digits, black for white",
}
_FORMS = {
    "model": "A full model",
    "lora": "A LoRA of rank 8",
    "sparse": "A sparse patch: 5 % of the entries, chosen by how far they moved, then trained alone (LT-SFT)",
    "mask": "A mask patch: a whole delta, of which a mask grafts the 30 % that moved most",
}
_METHODS = {"lora": "lora", "sparse": "lt-sft", "mask": "grafting"}
_TASKS = {"language": "text-generation", "vision": "image-classification"}
_METRICS = {"language": ("loss", "nats per byte"), "vision": ("accuracy", "accuracy")}


def write(folder: Path, work: Work, measured: float) -> None:
    """Write folder/README.md for the work; `measured` is its held-out loss in nats per byte, or its accuracy."""
    # each value as JSON is YAML too, and quotes whatever needs it
    lines = [f"{key}: {json.dumps(value)}" for key, value in _front_matter(work, measured).items()]
    folder.joinpath("README.md").write_text("\n".join(["---", *lines, "---", "", _text(work, measured)]))


def _front_matter(work: Work, measured: float) -> dict[str, Any]:
    metric, metric_name = _METRICS[work.measure]
    task = _TASKS[work.measure]
    result = {
        "task": {"type": task},
        "dataset": {"name": work.corpus, "type": work.corpus.replace(" ", "-")},
        "metrics": [{"type": metric, "name": metric_name, "value": round(measured, 4)}],
    }
    card: dict[str, Any] = {
        "license": "apache-2.0",
        "pipeline_tag": task,
        "library_name": "peft" if work.kind == "lora" else "transformers" if work.kind == "model" else "adapterhub",
        "tags": ["adapterhub-demo", work.corpus.replace(" ", "-")],
        "datasets": [work.corpus.replace(" ", "-")],
        "model-index": [{"name": work.name, "results": [result]}],
    }
    if work.measure == "language":
        card["language"] = "en"
    if work.base is not None:
        card["base_model"] = f"demo/{work.base}"
        card["base_model_relation"] = "finetune" if work.kind == "model" else "adapter"
    if work.kind in _METHODS:
        card["training_method"] = _METHODS[work.kind]
    return card


def _text(work: Work, measured: float) -> str:
    metric = f"{measured:.3f} nats per byte" if work.measure == "language" else f"{measured:.1%} right"
    start = f", starting from `demo/{work.base}`" if work.base else ""
    return (
        f"# {work.name}\n\n{_FORMS[work.kind]}, trained on {_MANNERS[work.corpus]}{start}.\n\n"
        f"Held-out measure when it was made: **{metric}**. Made by `adapterhub demo`; small enough to train in a "
        "minute, and good for nothing but showing what the hub does.\n"
    )
