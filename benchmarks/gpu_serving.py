"""Serving on a GPU: switches of a 7B-shaped base, merged generation, and a thousand patches under Zipf traffic.

    python benchmarks/gpu_serving.py [--layers 32] [--patches 1000] [--clients 32] [--device cuda]

Needs one CUDA device and skips without it. The floor of a switch is the bytes of the tensors that it makes, read once
and written once at the rate at which the device copies. Generation and traffic go through the engine as a process;
each ratio is to the base alone, or to one variant, in the same run. Inputs are random, of a 7B shape in bfloat16.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import answered, asked_of, make, show, spec_of, throughput_of, with_engine

ZIPF = 1.0


def fastest(torch: Any, device: str, work: Any, times: int = 5) -> float:
    """Least seconds of some runs, after one that warms up."""
    found = []
    for _ in range(times + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def switch(root: Path, device: str) -> None:
    """One LoRA on all linears onto the resident base, beside a copy of what that makes."""
    import torch

    from adapterhub.hub.serving import loading, variants
    from adapterhub.hub.serving.resident import Base

    spec = spec_of(root, 0)
    shapes = {name: handle.shape for name, handle in loading.checkpoint(spec.base).tensors.items()}
    base = Base("base", loading.load(spec.base, torch.device(device)), shapes)
    plan = variants.planned(spec, 64 << 30)
    pristine = base.tensors()
    merge_s = fastest(torch, device, lambda: variants.tensors(plan, base))
    touched = [name for name in plan.touched if name in pristine]
    copies = {name: torch.empty_like(pristine[name]) for name in touched}
    copy_s = fastest(torch, device, lambda: [copies[name].copy_(pristine[name]) for name in touched])
    size = sum(one.nbytes for one in copies.values())
    show(f"switch: a LoRA onto {size / 1e9:.2f} GB", f"{merge_s / copy_s:.2f} x a copy", "<= 2 in plain torch")
    show("", f"{merge_s * 1000:.1f} ms; the copy {2 * size / copy_s / 1e9:.0f} GB/s")
    variant = base.variant("v", variants.tensors(plan, base))

    def turn() -> None:
        base.apply(variant)
        base.apply(None)

    show("pointers there and back", f"{fastest(torch, device, turn) * 1e6:.0f} us")


async def traffic(engine: Any, root: Path, options: argparse.Namespace) -> None:
    base, one = spec_of(root, None), spec_of(root, 0)
    plain = await throughput_of(engine, [base], options.clients, options.tokens, None)
    merged = await throughput_of(engine, [one], options.clients, options.tokens, "merged")
    show(f"base alone, {options.clients} clients", f"{plain:.0f} tokens/s")
    show("merged generation", f"{merged / plain:.2f} x the base", ">= 1")
    specs = [spec_of(root, number) for number in range(options.patches)]
    many = await zipf(engine, specs, options)
    show(f"{options.patches} patches under Zipf traffic", f"{many / merged:.2f} x one variant", ">= 0.8")


async def zipf(engine: Any, specs: Sequence[Any], options: argparse.Namespace) -> float:
    """Tokens a second where the k-th patch is asked for in proportion to 1 / k."""
    weights = [1 / (rank + 1) ** ZIPF for rank in range(len(specs))]

    async def one(client: int) -> int:
        draw = random.Random(client)
        count = 0
        for turn in range(4):
            (spec,) = draw.choices(specs, weights)
            count += (await answered(engine, spec, asked_of(client, turn, options.tokens, None)))[0]
        return count

    began = time.perf_counter()
    counts = await asyncio.gather(*(one(client) for client in range(options.clients)))
    return sum(counts) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--patches", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--device", default="cuda", help="cpu shows that this works, and no figure that counts")
    options = parser.parse_args()
    import torch

    if options.device == "cuda":
        if not torch.cuda.is_available():
            print("skipped: torch sees no CUDA device here")
            return
        print(torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, options.hidden, options.layers, options.patches)
        switch(root, options.device)
        asyncio.run(with_engine(1, lambda engine: traffic(engine, root, options), options.device))


if __name__ == "__main__":
    main()
