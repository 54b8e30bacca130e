"""peanut: PEANuT as peft saves it: a small network that makes the delta from W itself.

Keys: `peanut_A.weight` (r, out) and `peanut_B.weight` (out, r), and depth times `peanut_encoders.<n>.weight` and
`peanut_decoders.<n>.weight` (r, r), in each module; W' = W + scaling · mlp(Wᵀ)ᵀ.

Source: arXiv:2410.01870; peft 0.21 `tuners/peanut/{config,layer,model}.py`.
"""

from adapterhub.merging.skeleton import RANK, Folded, folded_kind, number, one_of, whole

_ACTIVATIONS = [
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"),
    *("gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2"),
    *("relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh"),
]
"""transformers' activations that have no numbers of their own to learn."""

SPEC = folded_kind(
    Folded(
        peft_type="PEANUT",
        settings={"r": RANK, "depth": whole(0, 1000), "act_fn": one_of(*_ACTIVATIONS), "scaling": number(-1e9, 1e9)},
        effect="affine",
    ),
    name="peanut",
    title="PEANuT",
    summary="A small network that makes the delta from W itself",
    source="arXiv:2410.01870, as peft saves it",
    stem="peanut_",
    required=("peanut_A.weight", "peanut_B.weight"),
    shown=("r", "depth", "act_fn", "scaling"),
)
