"""mergekit's own run of a YAML on folders, which importing and running it makes several deprecated calls."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mergekit.common import ModelReference
    from mergekit.config import ConditionalParameter, MergeConfiguration, evaluate_setting
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

__all__ = [
    "ConditionalParameter",
    "MergeConfiguration",
    "MergeOptions",
    "evaluate_setting",
    "merged",
    "put_in_order",
    "run_merge",
]


def put_in_order(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
    """mergekit takes models from a set and tokens from a hash map, so its ids change from run to run; in order here."""
    get_vocab = PreTrainedTokenizerFast.get_vocab
    referenced = MergeConfiguration.referenced_models

    def by_id(self: Any) -> dict[str, int]:
        return dict(sorted(get_vocab(self).items(), key=lambda item: item[1]))

    def by_place(self: MergeConfiguration) -> list[ModelReference]:
        return sorted(referenced(self), key=lambda one: names.index(Path(one.model.path).name))

    monkeypatch.setattr(PreTrainedTokenizerFast, "get_vocab", by_id)
    monkeypatch.setattr(MergeConfiguration, "referenced_models", by_place)


def merged(folders: Mapping[str, Path], out: Path, text: str) -> Path:
    """`out`, with what mergekit makes of a YAML in which $name stands for a folder."""
    for name, folder in folders.items():
        text = text.replace(f"${name}", str(folder))
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_merge(config, str(out), MergeOptions(quiet=True, write_model_card=False))
    return out
