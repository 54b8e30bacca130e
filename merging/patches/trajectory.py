"""trajectory: seeds, projected gradients and learning rates of zeroth-order training, replayed on the base.

Files: `patch.json` of kind "trajectory" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2305.17333 (MeZO) sec. 2.1.
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "trajectory",
    title="MeZO trajectory",
    summary="Seeds, projected gradients and learning rates of zeroth-order training",
    source="arXiv:2305.17333 (MeZO) sec. 2.1",
)
