"""Linear layers whose weights stay in the 4 or 8 bits that they are stored in, and are widened a few rows at a time.

A layer computes with exactly the numbers that `merging.quantised` reads from the same file, in the dtype that the model
computes in; so it answers as the dequantised model would, in a quarter or half of its memory. Any device, no other
library. Imports torch: only an engine's process loads this.
"""

import functools
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving.naming import candidates
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.quantised import Coded, Packed, packed

ROWS_AT_ONCE = 1 << 20
"""Weights that are widened at a time: they stay in a core's cache."""
METHOD = "adapterhub-packed"

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_STORED = {"I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


class PackedLinear(nn.Linear):
    """A linear layer without a weight until `fill` gives it a packed one.

    weight: None; a variant may put a tensor there, with which the layer then computes instead.
    """

    weight: nn.Parameter | None  # type: ignore[assignment]
    packed: Tensor
    scales: Tensor
    table: Tensor

    def __init__(self, plain: nn.Linear) -> None:
        """Takes sizes and the bias of `plain`."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_parameter("weight", None)
        self.register_parameter("bias", plain.bias)
        self.compute_dtype = torch.float32

    def fill(self, weight: Packed) -> None:
        """Raises InvalidRequest where it has another shape."""
        if weight.shape != (self.out_features, self.in_features):
            raise InvalidRequest(
                f"{weight.name}: packed as {weight.shape}, and the model's layer is "
                f"({self.out_features}, {self.in_features})"
            )
        self.compute_dtype = _DTYPES[weight.dtype]
        if isinstance(weight, Coded):
            self._blocksize = weight.blocksize
            self.register_buffer("packed", _bytes(weight.packed.read()))
            self.register_buffer("scales", torch.from_numpy(weight.read_scales().copy()))
            self.register_buffer("table", torch.from_numpy(weight.read_table().copy()))
        else:
            self._block = weight.block
            stored = _bytes(weight.stored.read()).view(_STORED[weight.stored.dtype])
            self.register_buffer("packed", stored.view(weight.shape))
            self.register_buffer("scales", torch.from_numpy(weight.read_grid().copy()))
        self._widen = self._from_codes if isinstance(weight, Coded) else self._from_scaled

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        if self.weight is not None:
            return nn.functional.linear(input, self.weight, self.bias)
        output = input.new_empty(*input.shape[:-1], self.out_features)
        for start, stop in self._steps():
            bias = None if self.bias is None else self.bias[start:stop]
            output[..., start:stop] = nn.functional.linear(input, self.rows(start, stop).to(input.dtype), bias)
        return output

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows of the weight as the numbers they stand for, (stop - start, in), in `compute_dtype`."""
        return self._widen(start, stop).to(self.compute_dtype)

    def _steps(self) -> Iterator[tuple[int, int]]:
        step = max(1, ROWS_AT_ONCE // self.in_features)
        return ((start, min(start + step, self.out_features)) for start in range(0, self.out_features, step))

    def _from_codes(self, start: int, stop: int) -> Tensor:
        size = self._blocksize
        first, last = start * self.in_features, stop * self.in_features
        begin, end = first // size, -(-last // size)  # blocks
        codes, scales = self.packed[begin * size // 2 : end * size // 2], self.scales[begin:end]
        kernels = _kernels() if codes.device.type == "cpu" else None
        if kernels is not None:
            values = torch.empty(2 * len(codes))
            kernels.widen_codes(codes.numpy(), self.table.numpy(), scales.numpy(), size, values.numpy())
        else:
            pairs = torch.stack([self.table[codes.int() >> 4], self.table[codes.int() & 15]], 1).view(-1)
            short = (end - begin) * size - len(pairs)  # the last block of all may be short
            values = (nn.functional.pad(pairs, (0, short)).view(-1, size) * scales[:, None]).view(-1)
        return values[first - begin * size : last - begin * size].view(stop - start, self.in_features)

    def _from_scaled(self, start: int, stop: int) -> Tensor:
        rows, columns = self._block
        values = self.packed[start:stop].float()
        scales = self.scales[start // rows : -(-stop // rows)]
        if rows > 1:
            first = start - start // rows * rows
            scales = scales.repeat_interleave(rows, 0)[first : first + stop - start]
        if columns < self.in_features:
            scales = scales.repeat_interleave(columns, 1)[:, : self.in_features]
        return values * scales

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.packed.dtype}"


@functools.cache
def _kernels() -> ModuleType | None:
    """Compiled loops; None without numba, which is for few Pythons and processors."""
    try:
        return importlib.import_module("adapterhub.hub.serving.kernels")
    except ImportError:
        return None


def _bytes(buffer: memoryview) -> Tensor:
    return torch.frombuffer(bytearray(buffer), dtype=torch.uint8)


def packed_weights(stored: Checkpoint) -> dict[str, Packed]:
    """As `merging.quantised.packed`, of the formats that layers here compute with."""
    weights = packed(stored)
    for name, weight in weights.items():
        if isinstance(weight, Coded) and weight.blocksize % 2:
            raise InvalidRequest(f"{name}: packed in blocks of {weight.blocksize}; even ones are served")
    return weights


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """Tells transformers, while it loads a model, which weights it must leave to `fill`."""

    def __init__(self, names: Sequence[str] = (), **more: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.names = list(names)


@register_quantizer(METHOD)
class _Quantizer(HfQuantizer):
    """Makes the layers while the model has no memory yet, and leaves a model as any other."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config: Any = self.quantization_config
        for path in layers_of(model, config.names):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, PackedLinear(model.get_submodule(path)))

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def layers_of(model: Any, names: Iterable[str]) -> dict[str, str]:
    """The stored name of the weight of each layer that is packed, by the layer's path in the model.

    Raises InvalidRequest for a weight that is no linear layer's.
    """
    layers = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {}
    for name in sorted(names):
        known = (one.removesuffix(".weight") for one in candidates(model, name))
        path = next((one for one in known if one in layers), None)
        if path is None:
            raise InvalidRequest(
                f"{name}: stored in few bits, and the model has no linear layer there; serve the base it was made from"
            )
        found[path] = name
    return found


def configured(weights: Mapping[str, Packed]) -> dict[str, Any]:
    """What a model's config says in the place of its own `quantization_config`, for the layers to be made."""
    return {"quant_method": METHOD, "names": sorted(weights)}


def dtype_of(weights: Mapping[str, Packed]) -> torch.dtype:
    """What a model of such weights computes in."""
    return _DTYPES[next(iter(weights.values())).dtype]


def fill(model: Any, weights: Mapping[str, Packed]) -> None:
    """Read the packed weights into the layers that wait for them. Raises InvalidRequest."""
    for path, name in layers_of(model, weights).items():
        model.get_submodule(path).fill(weights[name])
