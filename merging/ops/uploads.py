"""Tensors from a file's memory to a GPU, past the computing there: pinned pieces on a stream of their own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PIECE_BYTES = 16 << 20
"""Bytes that are pinned at a time; torch keeps as many such pieces as are on their way, two or three."""


def uploaded(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The values, contiguous on the CPU, on a device; shared where they are there already.

    On a GPU they may be used at once: work queued on the current stream after this waits for them, work before does
    not. The CPU goes on when the last piece has been copied into pinned memory.
    Source: docs.pytorch.org/docs/stable/notes/cuda.html, "Use pinned memory buffers" and "CUDA streams".
    """
    import torch

    if torch.device(device).type != "cuda" or values.numel() == 0:
        return values.to(device)
    here, ours = torch.cuda.current_stream(device), _stream(str(device))
    source = values.reshape(-1).view(torch.uint8)
    with torch.cuda.stream(ours):
        result = torch.empty(values.shape, dtype=values.dtype, device=device)
        target = result.view(-1).view(torch.uint8)
        for start in range(0, source.numel(), PIECE_BYTES):
            piece = source[start : start + PIECE_BYTES]
            pinned = torch.empty(piece.shape, dtype=torch.uint8, pin_memory=True)
            target[start : start + PIECE_BYTES].copy_(pinned.copy_(piece), non_blocking=True)
    here.wait_stream(ours)
    result.record_stream(here)  # its memory is not given to others before the current stream has done with it
    return result


@functools.cache
def _stream(device: str) -> torch.cuda.Stream:
    import torch

    return torch.cuda.Stream(torch.device(device))  # type: ignore[no-untyped-call]
