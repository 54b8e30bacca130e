"""conditional_norm: γ(s) ⊙ x̂ + β(s) in some layer norms, γ and β linear in the embedding of speaker s.

Files: `patch.json` with effect "runtime" and `patch.safetensors`; `representations.py` lists tensors and options.
It acts at run time alone: `runtime/conditional_norm.py`.

Source: arXiv:2103.00993 sec. 2.3 (AdaSpeech).
"""

from adapterhub.merging.native_runtime import runtime_kind
from adapterhub.merging.representations import CONDITIONAL_NORM

SPEC = runtime_kind(
    CONDITIONAL_NORM,
    title="Conditional layer norm",
    summary="Scale and bias of layer norms made from an embedding of the speaker",
    source="arXiv:2103.00993 sec. 2.3 (AdaSpeech)",
)
