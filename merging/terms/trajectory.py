"""trajectory: W as steps of zeroth-order training leave it, replayed from seeds: W ← W - lr·(g·z + decay·W).

Fields: seed (T,) int64; g and lr (T,), any float dtype: the projected gradient and learning rate of each step, usually
shared by all sites; before (k,) int64, for torch's generator alone: how many numbers each parameter takes that is drawn
before this one in a step. Options: rng, "philox4x32-10" or "torch-cpu"; key, the parameter's name at training, which
with a step's seed keys Philox's numbers; dist, "rademacher" or "uniform" of Philox, "normal" of torch; draw_dtype, in
which torch drew; decay, the weight decay of this parameter; materialised_sha256, of the result as float32, checked
where it is given: torch's numbers differ between devices and may between versions.
Steps run in order in float32, as rounding is part of what was trained. A weight interpolates from W to the end.
Source: arXiv:2305.17333 alg. 1 and sec. 2.1; princeton-nlp/MeZO `large_models/trainer.py`, zo_update.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.ops.philox import Stream
from adapterhub.merging.ops.projections import DISTRIBUTIONS
from adapterhub.merging.ops.tensors import to_bytes, torch_dtype
from adapterhub.merging.ops.values import put
from adapterhub.merging.registry import Apply, Parameter, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of putting the replayed values in place. Raises NotFoldable where their digest is not the stored."""
    return put([_replayed(part, W) for part in parts], [part.weight for part in parts])


def _replayed(part: Part, W: torch.Tensor) -> torch.Tensor:
    """W after all steps, float32."""
    decay = float(part.options.get("decay", 0.0))
    # Rounded as float32 like the tensors they meet, whatever dtype they are stored in.
    seeds, gradients, rates = (part.fields[name].tolist() for name in ("seed", "g", "lr"))
    value = W.float().clone()
    for seed, g, lr in zip(seeds, gradients, rates, strict=True):
        step = _direction(part, int(seed), W).mul_(g)
        if decay:
            step.add_(value, alpha=decay)
        value.sub_(step, alpha=lr)
    expected, found = part.options.get("materialised_sha256"), hashlib.sha256(to_bytes(value)).hexdigest()
    if expected and expected != found:
        raise NotFoldable(
            f"{part.options.get('key') or 'a trajectory'}: replaying gives values of sha256 {found}, the patch says "
            f"{expected}; it was trained on another base, device or version of torch: store it as a dense patch there"
        )
    return value


def _direction(part: Part, seed: int, W: torch.Tensor) -> torch.Tensor:
    """The random direction z of one step, float32, W's shape, on W's device."""
    import torch

    options = part.options
    if options.get("rng", "philox4x32-10") == "philox4x32-10":
        stream = Stream.of(seed, str(options["key"]))
        draw = stream.uniform if options.get("dist") == "uniform" else stream.rademacher
        return torch.from_numpy(draw(0, W.numel())).float().view(W.shape).to(W.device)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch_dtype(options.get("draw_dtype", "F32"))
    for count in part.fields["before"].tolist() if "before" in part.fields else ():
        torch.empty(int(count), dtype=dtype).normal_(generator=generator)
    return torch.empty(W.shape, dtype=dtype).normal_(generator=generator).float().to(W.device)


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: each step is rounded where W is."""


def _misfit(term: Stored) -> str | None:
    is_philox = term.options.get("rng", "philox4x32-10") == "philox4x32-10"
    dist = term.options.get("dist", "rademacher")
    if is_philox and "key" not in term.options:
        return "has no key, which its numbers are drawn from"
    if is_philox == (dist == "normal"):
        return f"draws {dist} numbers; philox4x32-10 gives {' or '.join(DISTRIBUTIONS)}, torch-cpu gives normal"
    if not is_philox and not term.options.get("materialised_sha256"):
        return "draws torch's numbers and has no materialised_sha256: nobody could tell whether they came out the same"
    return None


SPEC = TermSpec(
    name="trajectory",
    summary="W after steps along random directions, replayed from their seeds",
    fields={
        "seed": stored("T", dtypes=["I64"]),
        "g": stored("T"),
        "lr": stored("T"),
        "before": stored("k", dtypes=["I64"], is_optional=True),
    },
    effect="replace",
    order=2,
    prepare=_prepare,
    norm=_norm,
    options=(
        Parameter("rng", "str", "philox4x32-10", "generator", choices=("philox4x32-10", "torch-cpu")),
        Parameter("key", "str", "", "the parameter's name at training"),
        Parameter("dist", "str", "rademacher", "distribution of directions", choices=(*DISTRIBUTIONS, "normal")),
        Parameter("draw_dtype", "str", "F32", "dtype of torch's numbers", choices=("F32", "F16", "BF16")),
        Parameter("decay", "float", 0.0, "weight decay of this parameter", low=0),
        Parameter("materialised_sha256", "str", "", "of the result as float32"),
    ),
    misfit=_misfit,
)
