"""Tiny models on disk, made once a session; tests that adapt one build their own with `tests.merging.tiny`."""

from pathlib import Path

import pytest

from tests.merging import tiny


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama with its own output embedding."""
    return tiny.saved(tiny.llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny GPT-2: Conv1D, tied embeddings."""
    return tiny.saved(tiny.gpt2(), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny bare BERT encoder."""
    return tiny.saved(tiny.bert(), tmp_path_factory.mktemp("bert"))
