"""What run-time patches of the native format hold, kind by kind: the one list of their tensors and options.

Sizes: d the width of a hidden state, r a rank, h a bottleneck, heads and w those of attention. Never imports torch.
"""

from adapterhub.merging.native_runtime import RuntimeFormat, is_count, is_flag, is_number, is_text, one_of

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu", "swish", "tanh", "sigmoid", "leaky_relu", "none")
"""Names of the functions between a bottleneck's two projections, as transformers spells them."""

STEERING = RuntimeFormat(
    "steering",
    {"vector": ("d",)},
    options={"strength": is_number},
    defaults={"strength": 1.0},
)

LOFIT = RuntimeFormat("lofit", {"A": ("heads", "w"), "v": ("heads", "w")}, optional=frozenset({"A", "v"}))

REFT = RuntimeFormat(
    "reft",
    {"R": ("r", "d"), "W": ("r", "d"), "b": ("r",)},
    options={"positions": one_of("all", "ends"), "first": is_count, "last": is_count},
    defaults={"positions": "all", "first": 0, "last": 0},
)

BOTTLENECK = RuntimeFormat(
    "bottleneck",
    {
        "down.weight": ("h", "d"),
        "down.bias": ("h",),
        "up.weight": ("o", "h"),
        "up.bias": ("o",),
        "norm.weight": ("d",),
        "norm.bias": ("d",),
    },
    optional=frozenset({"down.bias", "up.bias", "norm.weight", "norm.bias"}),
    options={"activation": one_of(*ACTIVATIONS), "scaling": is_number, "is_parallel": is_flag, "norm_eps": is_number},
    defaults={"activation": "relu", "scaling": 1.0, "is_parallel": False, "norm_eps": 1e-5},
)

CONDITIONAL_NORM = RuntimeFormat(
    "conditional_norm",
    {"scale.weight": ("d", "e"), "scale.bias": ("d",), "shift.weight": ("d", "e"), "shift.bias": ("d",)},
    shared={"embeddings": ("speakers", "e")},
    optional=frozenset({"scale.bias", "shift.bias"}),
)

EPT = RuntimeFormat(
    "ept",
    shared={
        "prompt": ("n", "d"),
        "A": ("m", "r"),
        "B": ("r", "d"),
        "down": ("spaces", "d", "h"),
        "up": ("spaces", "h", "d"),
        "gate": ("d", "spaces"),
    },
    more=lambda patch: {"virtual_tokens": patch.shared["prompt"].shape[0]},
)

SIDE_MODEL = RuntimeFormat(
    "side_model",
    options={"architecture": is_text, "reads": is_text, "combines": is_text},
    is_free=True,
)

HYPERNETWORK = RuntimeFormat(
    "hypernetwork",
    options={"architecture": is_text, "generates": is_text, "conditioned_on": is_text},
    is_free=True,
)
