"""Merging a model of about 100 million bfloat16 parameters, beside copying its file and beside peft.

    python benchmarks/merging.py [--threads N]

Prints seconds, the ratio to the floor (the same bytes read, hashed and written durably, measured in the same run), and
for one LoRA the ratio to peft: load model and adapter, merge_and_unload, save_pretrained. Runs in under a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run, variant
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse

PIECE_BYTES = 4 * 1024 * 1024
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_inputs(root: Path) -> None:
    """A random Llama of 94 million parameters, a second one, and three LoRAs of rank 16 on all linear layers."""
    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=True,
    )
    for name in ("base", "other"):
        model: Any = LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(root / name)
    for name in ("a", "b", "c"):
        adapted = get_peft_model(model, LoraConfig(r=16, target_modules=TARGETS))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.02)
        adapted.save_pretrained(str(root / name), save_embedding_layers=False)
        model = adapted.unload()


def planned(root: Path, text: str) -> Plan:
    recipe = parse(text)
    inputs = {
        ref: Input(ref.name, LocalFolder(root / ref.name), kind="model" if ref.name in ("base", "other") else "lora")
        for ref in recipe.references()
    }
    return plan(recipe, inputs, memory_bytes=8 << 30)


def best_of(count: int, work: Callable[[Path], object], root: Path) -> float:
    """Least seconds of `work` in new folders, after one run that warms caches."""
    seconds = []
    for _ in range(count + 1):
        with tempfile.TemporaryDirectory(dir=root) as out:
            start = time.perf_counter()
            work(Path(out) / "out")
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def copy_hashed(source: Path, target: Path) -> None:
    """The floor: every byte read, hashed and written once, made durable at the end."""
    hashed = hashlib.sha256()
    with source.open("rb") as original, target.open("wb") as copy:
        while piece := original.read(PIECE_BYTES):
            hashed.update(piece)
            copy.write(piece)
        copy.flush()
        os.fsync(copy.fileno())


def merge_with_peft(root: Path, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    PeftModel.from_pretrained(model, str(root / "a")).merge_and_unload().save_pretrained(out)


def sha256_gb_per_s() -> float:
    block = bytes(64 * 1024 * 1024)
    start = time.perf_counter()
    hashlib.sha256(block).digest()
    return len(block) / (time.perf_counter() - start) / 1e9


CASES = {
    "one LoRA": "base + a",
    "three LoRAs": "base + 0.5*a + 0.3*b - 0.2*c",
    "mean of two models": "base + 0.5*other",
    "TIES of three LoRAs": "ties(base; a, b, c, density=0.2)",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument(
        "--threads", type=int, default=None, help="tensors in work at a time; torch's number by default"
    )
    threads = arguments.parse_args().threads
    warnings.simplefilter("ignore", FutureWarning)  # transformers', of its own calls
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_inputs(root)
        weights = root / "base/model.safetensors"
        floor = best_of(3, lambda out: copy_hashed(weights, out), root)
        size = weights.stat().st_size
        hashing = f"sha256 {sha256_gb_per_s():.2f} GB/s"
        print(f"{size / 1e6:.0f} MB of bfloat16, {threads or torch.get_num_threads()} threads, {hashing}")
        print(f"{'':24}{'seconds':>9}{'x floor':>9}{'MB/s':>8}")
        print(f"{'floor: copy and hash':24}{floor:9.2f}{1:9.1f}{size / floor / 1e6:8.0f}")
        for name, text in CASES.items():
            made = planned(root, text)
            seconds = best_of(1 if "TIES" in name else 2, lambda out, made=made: run(made, out, threads=threads), root)
            print(f"{name:24}{seconds:9.2f}{seconds / floor:9.1f}{size / seconds / 1e6:8.0f}")
            if name == "one LoRA":
                ours = seconds
        made = planned(root, CASES["one LoRA"])
        seconds = best_of(2, lambda out: variant(made, threads=threads), root)
        print(f"{'one LoRA, in memory':24}{seconds:9.2f}{seconds / floor:9.1f}{size / seconds / 1e6:8.0f}")
        theirs = best_of(1, lambda out: merge_with_peft(root, out), root)
        print(f"{'one LoRA by peft':24}{theirs:9.2f}{theirs / floor:9.1f}{size / theirs / 1e6:8.0f}")
        print(f"one LoRA: {theirs / ours:.1f} times as fast as peft's load, merge and save")


if __name__ == "__main__":
    main()
