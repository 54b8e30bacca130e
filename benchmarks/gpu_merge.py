"""Merging on a GPU with a resident base, beside moving the same bytes: needs one CUDA device, skips without it.

    python benchmarks/gpu_merge.py [--layers 8]

The floor of each merge is the bytes that it must read and write in the device's memory, at the rate at which the device
copies; LoRAs read the base and write the result, TIES of three models reads four and writes one. Inputs are random and
of a 7B shape with fewer layers; times are the fastest of five, synchronised. The base is resident; patches and the
three models come from mapped files each time, whose way to the device counts in ours and not in the floor.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.merging import PROJECTIONS, TUNED, make_loras, make_models, shapes

HIDDEN, INNER, VOCABULARY = 4096, 11008, 32_000


def copy_bytes_per_s(torch: Any) -> float:
    """How fast the device reads and writes its memory, both counted."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / fastest(torch, lambda: target.copy_(source))


def fastest(torch: Any, work: Callable[[], object], times: int = 5) -> float:
    """Least seconds of some runs, after one that warms up."""
    found = []
    for _ in range(times + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def compare(torch: Any, root: Path, name: str, text: str, passes: int, wanted: float, rate: float) -> None:
    """One line: seconds of a variant of the resident base, and the ratio to moving its bytes."""
    from adapterhub.merging.checkpoint import Checkpoint
    from adapterhub.merging.effects import read
    from adapterhub.merging.engine import variant
    from adapterhub.merging.folders import LocalFolder
    from adapterhub.merging.plan import plan
    from adapterhub.merging.recipes.canonical import Input
    from adapterhub.merging.recipes.expression import parse

    recipe = parse(text)
    inputs = {
        ref: Input(ref.name, LocalFolder(root / ref.name), kind="lora" if "lora" in ref.name else "model")
        for ref in recipe.references()
    }
    planned = plan(recipe, inputs, memory_bytes=16 << 30)
    stored = Checkpoint.open(LocalFolder(root / "base")).tensors
    base = {tensor: read(handle, "cuda") for tensor, handle in stored.items()}
    moved = passes * sum(base[output.base.name].nbytes for output in planned.outputs if output.name in planned.touched)
    seconds = fastest(torch, lambda: variant(planned, device="cuda", base=base))
    ratio = seconds * rate / moved
    print(
        f"{name:16}{seconds * 1e3:9.1f} ms{moved / 1e9:8.1f} GB moved{ratio:8.2f} x floor (<= {wanted:g})", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=8, help="layers of 405 MB each")
    layers = parser.parse_args().layers
    import torch

    if not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device here")
        return
    rate = copy_bytes_per_s(torch)
    print(f"{torch.cuda.get_device_name()}: copies at {rate / 1e9:.0f} GB/s, reading and writing counted")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_models(root, ("base", *TUNED), HIDDEN, INNER, layers, VOCABULARY)
        targets = [name for names in PROJECTIONS.values() for name in names]
        make_loras(root, [f"lora{n}" for n in range(3)], shapes(HIDDEN, INNER, layers, VOCABULARY), targets)
        compare(torch, root, "three LoRAs", "base + lora0 + lora1 + lora2", 2, 2.0, rate)
        compare(torch, root, "ties of three", "ties(base; a, b, c, density=0.2)", 5, 2.0, rate)


if __name__ == "__main__":
    main()
