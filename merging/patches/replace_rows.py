"""replace_rows: new values of single rows of some parameters, such as the embeddings of some tokens.

Files: `patch.json` of kind "replace_rows" and `patch.safetensors`, the native format of `native.py`.
Source: peft TrainableTokens.
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "replace_rows",
    title="Replaced rows",
    summary="New values of single rows, such as those of added tokens",
    source="peft TrainableTokens",
)
