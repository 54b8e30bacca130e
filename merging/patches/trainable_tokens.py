"""trainable_tokens: rows of an embedding that were trained, as peft's trainable tokens tuner saves them.

Keys: `trainable_tokens_delta` (tokens, dim), which replaces rows in spite of its name; token_indices says which. On
tied embeddings input and output change together, and the file repeats the rows for each module that shares the tensor,
`lm_head.trainable_tokens_delta` and the like. (Other tuners keep such rows below `token_adapter`.)

Source: peft 0.21 `tuners/trainable_tokens/{config,layer,model}.py`, merge.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.peft_adapter import Adapter, Module, Sites, Tuner, peft_kind, rows_term, token_indices


def _check(config: Mapping[str, Any], file: str) -> None:
    if not isinstance(config.get("token_indices"), list):
        raise InvalidPatch(f"{file}: token_indices is {str(config.get('token_indices'))[:80]}; a list is expected")
    token_indices(config, "the embedding")


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    shape, indices = module.fields["rows"].shape, token_indices(adapter.config, module.path)
    if len(shape) != 2 or shape[0] != len(indices):
        yield f"trainable_tokens_delta is {shape} for {len(indices)} token indices"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One replace_rows term; none for a module whose tensor the base stores under another that has the same rows."""
    rows = module.fields["rows"]
    is_stored = sites.find(f"{module.path}.weight") is not None
    if not is_stored and any(rows.read() == one.read() for one in _stored_rows(adapter, sites)):
        return
    yield rows_term(adapter, module, rows, sites)


def _stored_rows(adapter: Adapter, sites: Sites) -> Iterator[TensorHandle]:
    """The rows of all modules whose weight the base has by their own name."""
    for path, module in adapter.modules.items():
        if "rows" in module.fields and sites.find(f"{path}.weight") is not None:
            yield module.fields["rows"]


SPEC = peft_kind(
    Tuner(
        peft_type="TRAINABLE_TOKENS",
        fields={".trainable_tokens_delta": "rows"},
        required=(("rows",),),
        effect="replace",
        check=_check,
        contradictions=_contradictions,
        terms=_terms,
    ),
    name="trainable_tokens",
    title="Trainable tokens",
    summary="Single rows of an embedding, stored whole",
    source="peft's tuners/trainable_tokens",
)
