"""seeded: a few trained numbers and the seed of the random projection that spreads them over the parameters.

Files: `patch.json` of kind "seeded" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:1804.08838, arXiv:2012.13255.
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "seeded",
    title="Intrinsic dimension",
    summary="A few numbers that a seeded random projection spreads over all parameters",
    source="arXiv:1804.08838, arXiv:2012.13255",
)
