"""Which measurements are quick: those on a few architectures that differ most; the others run among the slow tests."""

from pathlib import Path

import pytest

QUICK = {"gpt2", "llama", "llama-tied", "bert", "t5"}
"""Conv1D and tied embeddings, a plain decoder, an encoder, both of them."""

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and HERE in item.path.parents and callspec.params.get("name", "llama") not in QUICK:
            item.add_marker(pytest.mark.slow)
