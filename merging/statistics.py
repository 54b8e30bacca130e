"""What a patch knows of its data: `statistics.safetensors` beside it, read lazily. Never imports torch.

Tensors: `<input>::gram`, the mean of x xᵀ over samples x (n,) of what goes into a linear layer, its upper triangle row
by row, (n(n+1)/2,) float32, once for all layers that take the same input; `<parameter>::fisher`, the mean of squared
gradients of the log-likelihood, of the parameter's shape. Metadata, JSON: `inputs`, the name of the input by parameter;
`transposed`, the parameters stored (in, out); `counts`, the samples by input; `fisher_norm`, the Euclidean norm of all
Fisher tensors together. `training/statistics.py` writes it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapterhub.merging.checkpoint import Folder, TensorHandle, open_tensors
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import join

FILE = "statistics.safetensors"


@dataclass(frozen=True)
class SiteStatistics:
    """What is known at one parameter. gram, fisher: None where they were not collected; count: samples of the Gram.

    is_transposed: whether the parameter is stored (in, out). fisher_norm: of all tensors of the patch.
    """

    gram: TensorHandle | None = None
    count: int = 0
    is_transposed: bool = False
    fisher: TensorHandle | None = None
    fisher_norm: float = 1.0

    @property
    def handles(self) -> tuple[TensorHandle, ...]:
        """Those that are there."""
        return tuple(one for one in (self.gram, self.fisher) if one is not None)


@dataclass(frozen=True)
class Statistics:
    """The file of one patch, its header read."""

    file: str
    tensors: Mapping[str, TensorHandle]
    inputs: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    counts: Mapping[str, int] = field(default_factory=dict)
    fisher_norm: float = 1.0

    def at(self, site: str, shape: tuple[int, ...]) -> SiteStatistics:
        """What is known at a parameter of this shape. Raises InvalidPatch for what was collected of another model."""
        source = self.inputs.get(site, "")
        gram, fisher = self.tensors.get(f"{source}::gram"), self.tensors.get(f"{site}::fisher")
        is_transposed = site in self.transposed
        if gram is not None:
            fan_in = shape[0] if is_transposed else math.prod(shape[1:])
            self._check(site, gram, (fan_in * (fan_in + 1) // 2,), shape)
        if fisher is not None:
            self._check(site, fisher, shape, shape)
        return SiteStatistics(gram, self.counts.get(source, 0), is_transposed, fisher, self.fisher_norm)

    def _check(self, site: str, found: TensorHandle, expected: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if found.shape != expected or found.dtype != "F32":
            raise InvalidPatch(
                f"{self.file}: {found.name} is {found.dtype} {found.shape}, and {site} of shape {shape} needs F32 "
                f"{expected}; collect the statistics on the model that this patch belongs to"
            )


def open_statistics(folder: Folder, path: str = "") -> Statistics | None:
    """The statistics beside the patch in `path` of a folder, None where there are none. Raises InvalidPatch."""
    file = join(path, FILE)
    if file not in folder.names():
        return None
    tensors, metadata = open_tensors(folder, file)
    try:
        told: dict[str, Any] = {key: json.loads(metadata.get(key, "{}")) for key in ("inputs", "counts")}
        transposed = frozenset(json.loads(metadata.get("transposed", "[]")))
        counts = {str(name): int(count) for name, count in told["counts"].items()}
        inputs = {str(site): str(name) for site, name in told["inputs"].items()}
        norm = float(metadata.get("fisher_norm", "1"))
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidPatch(f"{file}: its metadata are no statistics ({error}); collect them again") from error
    if not math.isfinite(norm) or norm < 0:
        raise InvalidPatch(f"{file}: fisher_norm is {norm}; a finite number of at least 0 is expected")
    return Statistics(file, tensors, inputs, transposed, counts, norm)
