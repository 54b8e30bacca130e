"""gguf: llama.cpp, which loads LoRA in its own file format alone.

What has a place in that file is what this project's writer of it says, term by term: linear layers of a block and the
output, no magnitudes, no biases, no embeddings; one alpha, so that other scales go into B. llama.cpp itself refuses a
file of another architecture, with a tensor that its model does not have, or of other sizes; it would take an adapter of
the input embedding, which is not written here.

Source: ggml-org/llama.cpp src/llama-adapter.cpp at 0650ea8c, convert_lora_to_gguf.py.
"""

from collections.abc import Mapping
from dataclasses import replace

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.errors import NotFoldable, NotRepresentable
from adapterhub.merging.patch import Patch
from adapterhub.merging.serving_rules import FEATURES, Rule, ServingEngine

_FORM = "it loads GGUF files alone"
_RULES = tuple(Rule(feature, "refuses", _FORM) for feature in FEATURES)


def _answers(patch: Patch, base: Checkpoint | None) -> Mapping[str, str]:
    """Why single terms have no place in the file, by site."""
    export = patches.kinds()["gguf"].export
    assert export is not None
    found = {}
    for term in patch.terms:
        try:
            export([(1.0, replace(patch, terms=(term,)))], "", base)
        except (NotRepresentable, NotFoldable) as error:
            found[term.site] = str(error)
    return found


SPEC = ServingEngine(
    name="gguf",
    title="llama.cpp",
    source="llama.cpp convert_lora_to_gguf.py",
    form="gguf",
    tested="",
    known="",
    rules=_RULES,
    answers=_answers,
)
