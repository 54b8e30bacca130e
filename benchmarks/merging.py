"""Merging, beside mergekit, peft and a plain copy: seconds and peak memory of each in a process of its own.

    python benchmarks/merging.py [--layers 2] [--large] [--only NAME ...] [--folder PATH]

Inputs are random bfloat16 models of a Llama shape (hidden 2048) and LoRAs of rank 16 on them; and one layer of a 7B
shape with three, eight and a thousand LoRAs on it. Every figure is measured in this run; outputs are made durable
(fsync) by both sides; peak memory is VmHWM of the process, mapped files included. mergekit's seconds are given with
and without its imports: `inner` is the call alone, on both sides. The floor reads the inputs once and writes the
output once, and beside it stands one that hashes the output too, as ours does; of a thousand LoRAs it is the one
product of matrices that they come to. `--large` merges models beyond 2 GiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PIECE_BYTES = 4 * 1024 * 1024
RANK = 16
MEMORY_BYTES = 2 << 30
PROJECTIONS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


@dataclass(frozen=True)
class Case:
    """One merge. ours: the expression; theirs: mergekit's configuration; wanted: times as fast as the peer."""

    name: str
    ours: str
    theirs: Mapping[str, Any]
    reads: int
    wanted: float
    of_floor: float | None = None
    as_kind: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def _mergekit(method: str, models: Sequence[str], base: str | None, **parameters: Any) -> dict[str, Any]:
    entries = [{"model": model, "parameters": {"weight": 1.0}} for model in models]
    found: dict[str, Any] = {"merge_method": method, "models": entries, "dtype": "bfloat16", "parameters": parameters}
    return found | ({"base_model": base} if base else {})


TUNED = ("a", "b", "c")
LORAS = [f"base+lora{number}" for number in range(3)]
THOUSAND = 1000
CASES = [
    Case("linear", "linear(base; base, a, b)", _mergekit("linear", ("base", "a", "b"), None), 3, 3, 1.3),
    Case("task_arithmetic", "task_arithmetic(base; a, b, c)", _mergekit("task_arithmetic", TUNED, "base"), 4, 3, 1.3),
    Case(
        "dare_ties",
        "dare_ties(base; a, b, c, density=0.4)",
        _mergekit("dare_ties", TUNED, "base", density=0.4),
        4,
        3,
    ),
    Case("della", "della(base; a, b, c, density=0.4)", _mergekit("della", TUNED, "base", density=0.4), 4, 3),
    Case("slerp", "slerp(base; a, t=0.4)", _mergekit("slerp", ("base", "a"), "base", t=0.4), 2, 3),
    Case("ties", "ties(base; a, b, c, density=0.2)", _mergekit("ties", TUNED, "base", density=0.2), 4, 5),
    Case("three LoRAs", "base + lora0 + lora1 + lora2", _mergekit("task_arithmetic", LORAS, "base"), 1, 10),
]


def _of_seven(count: int) -> Case:
    names = [f"lora-all{number}" for number in range(count)]
    theirs = _mergekit("task_arithmetic", [f"base+{name}" for name in names], "base")
    return Case(f"{count} LoRAs, 7B", " + ".join(["base", *names]), theirs, 1, 10)


SEVEN = [_of_seven(3), _of_seven(8)]
"""Cases on one layer of a 7B shape."""


# ---- inputs: made in a child, for the parent stays small ---------------------------------------------------------


def shapes(hidden: int, inner: int, layers: int, vocabulary: int) -> dict[str, tuple[int, int]]:
    """The matrices of a Llama: names and (out, in)."""
    found = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    for layer in range(layers):
        for block, names in PROJECTIONS.items():
            for name in names:
                out = inner if name in ("gate_proj", "up_proj") else hidden
                fan_in = inner if name == "down_proj" else hidden
                found[f"model.layers.{layer}.{block}.{name}.weight"] = (out, fan_in)
    return found


def make_models(root: Path, names: Sequence[str], hidden: int, inner: int, layers: int, vocabulary: int) -> None:
    """A random bfloat16 Llama, and others that differ from it as fine-tuned ones do."""
    import torch
    from safetensors.torch import save_file

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128,
        "num_key_value_heads": hidden // 128,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    vectors = ["model.norm.weight"]
    for layer in range(layers):
        vectors += [f"model.layers.{layer}.{one}_layernorm.weight" for one in ("input", "post_attention")]
    matrices = shapes(hidden, inner, layers, vocabulary)
    for number, name in enumerate(names):
        tensors = {vector: torch.ones(hidden, dtype=torch.bfloat16) for vector in vectors}
        common, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(number)
        for matrix, shape in matrices.items():
            values = torch.empty(shape).normal_(std=0.02, generator=common)
            if number:
                values += torch.empty(shape).normal_(std=0.002, generator=own)
            tensors[matrix] = values.to(torch.bfloat16)
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
        (root / name / "config.json").write_text(json.dumps(config))


def make_loras(
    root: Path, names: Sequence[str], matrices: Mapping[str, tuple[int, int]], targets: Sequence[str]
) -> None:
    """LoRAs of rank RANK on the named layers, in float32, as peft writes them."""
    import torch
    from safetensors.torch import save_file

    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    config |= {"target_modules": list(targets), "base_model_name_or_path": str(root / "base")}
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(100 + number)
        tensors = {}
        for matrix, (out, fan_in) in matrices.items():
            if matrix.split(".")[-2] in targets:
                stem = "base_model.model." + matrix.removesuffix(".weight")
                tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, fan_in, generator=generator) / fan_in**0.5
                tensors[f"{stem}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.02
        (root / name).mkdir()
        save_file(tensors, root / name / "adapter_model.safetensors", metadata={"format": "pt"})
        (root / name / "adapter_config.json").write_text(json.dumps(config))


def make(root: Path, hidden: int, inner: int, layers: int, vocabulary: int) -> None:
    matrices = shapes(hidden, inner, layers, vocabulary)
    make_models(root, ("base", *TUNED), hidden, inner, layers, vocabulary)
    targets = [name for names in PROJECTIONS.values() for name in names]
    make_loras(root, [f"lora{number}" for number in range(3)], matrices, targets)


def make_seven(root: Path) -> None:
    """One layer of 7B's shape, eight LoRAs on all of it, and a thousand on one projection."""
    make_models(root, ["base"], 4096, 11008, 1, 256)
    matrices = shapes(4096, 11008, 1, 256)
    every = [name for names in PROJECTIONS.values() for name in names]
    make_loras(root, [f"lora-all{n}" for n in range(8)], matrices, every)
    make_loras(root, [f"lora{n}" for n in range(THOUSAND)], matrices, ("q_proj",))


# ---- the contestants: each runs in a child and gives the seconds of the call alone --------------------------------


class Stopwatch:
    """Seconds since it was made, and those that the process was on a processor."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def ours(root: Path, out: Path, expression: str, as_kind: str | None = None) -> tuple[float, float]:
    """Plan and merge of inputs whose digests are known, as those of the hub are.

    What is imported, variants and compiled passes too, is so before the seconds of the call, as the peers' imports are.
    """
    from adapterhub.merging import patches
    from adapterhub.merging.engine import run
    from adapterhub.merging.folders import LocalFolder, MappedFolder
    from adapterhub.merging.methods import methods
    from adapterhub.merging.ops import passes
    from adapterhub.merging.plan import RUNTIME_BYTES, plan
    from adapterhub.merging.recipes.canonical import Input
    from adapterhub.merging.recipes.expression import parse
    from adapterhub.merging.terms import terms

    methods(), terms(), patches.kinds()
    recipe = parse(expression)
    inputs = {}
    for ref in recipe.references():
        folder = LocalFolder(root / ref.name)
        files = {one: (folder.path(one), f"sha256:{ref.name}/{one}", folder.size(one)) for one in folder.names()}
        inputs[ref] = Input(ref.name, MappedFolder(files), kind="lora" if "lora" in ref.name else "model")
    passes.expect(passes.COMPILED_ENTRIES)
    start = Stopwatch()
    run(plan(recipe, inputs, as_kind=as_kind, memory_bytes=MEMORY_BYTES - RUNTIME_BYTES), out)
    return start.read()


def mergekit(root: Path, out: Path, configuration: dict[str, Any]) -> tuple[float, float]:
    """What mergekit-yaml runs, its result made durable as ours is."""
    os.chdir(root)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    start = Stopwatch()
    loras = str(out.with_name("loras"))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, lora_merge_cache=loras)
    run_merge(MergeConfiguration.model_validate(configuration), str(out), options)
    _make_durable(out)
    return start.read()


def peft(root: Path, out: Path, count: int) -> tuple[float, float]:
    """peft's add_weighted_adapter of that many LoRAs by svd, saved."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.bfloat16)
    names = [f"lora{number}" for number in range(count)]
    model = PeftModel.from_pretrained(base, str(root / names[0]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(root / name), adapter_name=name)
    start = Stopwatch()
    model.add_weighted_adapter(names, [1.0 / count] * count, "merged", combination_type="svd", svd_rank=RANK)
    model.save_pretrained(str(out), selected_adapters=["merged"], save_embedding_layers=False)
    _make_durable(out)
    return start.read()


def copy(root: Path, out: Path, reads: Sequence[str], writes: str, hashes: bool) -> tuple[float, float]:
    """The floor: every input read once, the bytes of one written and made durable; and hashed, as a store must."""
    out.mkdir()
    start, digest = Stopwatch(), hashlib.sha256()
    with (out / "model.safetensors").open("wb") as target:
        for name in reads:
            with (root / name / "model.safetensors").open("rb") as source:
                while piece := source.read(PIECE_BYTES):
                    if name == writes:
                        target.write(piece)
                        if hashes:
                            digest.update(piece)
        target.flush()
        os.fsync(target.fileno())
    return start.read()


def product(root: Path, out: Path, count: int) -> tuple[float, float]:
    """The floor of many LoRAs on one projection of 7B's shape: their factors as one product in float32."""
    import torch

    left, right = torch.randn(4096, RANK * count), torch.randn(RANK * count, 4096)
    start = Stopwatch()
    torch.mm(left, right)
    return start.read()


CHILDREN = {one.__name__: one for one in (ours, mergekit, peft, copy, product)}


def _make_durable(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


# ---- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One child: seconds of all of it, of the call alone, of processors in the call; peak memory; bytes left behind."""

    whole_s: float
    inner_s: float
    busy_s: float
    peak_bytes: int
    left_bytes: int


def measure(what: str, root: Path, *arguments: Any, times: int = 1) -> Measured:
    """The fastest of some runs of a child, after which its output is gone."""
    found = []
    for _ in range(times):
        with tempfile.TemporaryDirectory(dir=root) as folder:
            command = [sys.executable, __file__, "--child", json.dumps([what, str(root), f"{folder}/out", *arguments])]
            os.sync()  # what was written before is not brought to the disk in the seconds of this run
            start = time.perf_counter()
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            whole = time.perf_counter() - start
            if done.returncode:
                raise SystemExit(f"{what} {arguments}: {done.stderr[-3000:]}")
            inner, busy, peak = json.loads(done.stdout.splitlines()[-1])
            found.append(Measured(whole, inner, busy, peak, _bytes_beside(Path(folder), "out")))
    return min(found, key=lambda one: one.inner_s)


def _bytes_beside(folder: Path, name: str) -> int:
    """Bytes of files in the folder but outside its sub-folder `name`: what a run left lying about."""
    beside = (path for path in folder.rglob("*") if path.relative_to(folder).parts[0] != name and path.is_file())
    return sum(path.stat().st_size for path in beside)


def child(request: str) -> None:
    what, root, out, *arguments = json.loads(request)
    if what == "make":
        make(Path(root), *arguments)
        return
    if what == "make_seven":
        make_seven(Path(root))
        return
    seconds, busy = CHILDREN[what](Path(root), Path(out), *arguments)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps([seconds, busy, peak]))


def sha256_gb_per_s() -> float:
    block = bytes(64 * 1024 * 1024)
    start = time.perf_counter()
    hashlib.sha256(block).digest()
    return len(block) / (time.perf_counter() - start) / 1e9


def fsyncs_per_s(folder: Path) -> float:
    with (folder / "probe").open("wb") as file:
        start = time.perf_counter()
        for _ in range(20):
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        return 20 / (time.perf_counter() - start)


HEAD = (
    "case",
    "ours s",
    "peer s",
    "x",
    "ours CPU",
    "peer CPU",
    "x",
    "process",
    "wanted",
    "MB",
    "peer MB",
    "x",
    "x floor",
    "+sha256",
)


def compare(case: Case, root: Path, times: int) -> None:
    """One line: seconds and processor seconds of the calls, peak memory, and the ratios; `process` has imports too."""
    reads = ["base", *TUNED][: case.reads]
    us = measure("ours", root, case.ours, times=times)
    them = measure("mergekit", root, case.theirs)
    floor, hashed = (measure("copy", root, reads, "base", hashes, times=times) for hashes in (False, True))
    row = [
        case.name,
        f"{us.inner_s:.2f}",
        f"{them.inner_s:.2f}",
        f"{them.inner_s / us.inner_s:.1f}",
        f"{us.busy_s:.2f}",
        f"{them.busy_s:.2f}",
        f"{them.busy_s / us.busy_s:.1f}",
        f"{them.whole_s / us.whole_s:.1f}",
        f">= {case.wanted:g}",
        f"{us.peak_bytes / 1e6:.0f}",
        f"{them.peak_bytes / 1e6:.0f}",
        f"{us.peak_bytes / them.peak_bytes:.2f}",
        f"{us.inner_s / floor.inner_s:.2f}",
        f"{us.inner_s / hashed.inner_s:.2f}",
    ]
    show(row)
    if them.left_bytes:
        print(f"{'':14}mergekit made {them.left_bytes / 1e6:.0f} MB of temporary copies; ours {us.left_bytes}")


def compare_svd(root: Path, count: int) -> None:
    """LoRAs of a 7B shape into one LoRA of the same rank."""
    terms = " + ".join(f"{1 / count}*lora{number}" for number in range(count))
    us = measure("ours", root, f"base + {terms}", f"lora:r={RANK}")
    them = measure("peft", root, count)
    print(
        f"{count} LoRAs of rank {RANK} (one module of 4096 x 4096) to one: ours {us.inner_s:.2f} s, "
        f"peft svd {them.inner_s:.2f} s: {them.inner_s / us.inner_s:.0f} times as fast (>= 10)"
    )


def compare_thousand(root: Path) -> None:
    """A thousand LoRAs onto one projection, which no peer here takes."""
    us = measure("ours", root, " + ".join(["base", *(f"0.01*lora{number}" for number in range(THOUSAND))]))
    floor = measure("product", root, THOUSAND)
    print(
        f"{THOUSAND} LoRAs of rank {RANK} onto that module: ours {us.inner_s:.2f} s, {us.peak_bytes / 1e6:.0f} MB; "
        f"the one product of matrices {floor.inner_s:.2f} s: {us.inner_s / floor.inner_s:.2f} x floor"
    )


def show(row: Sequence[str]) -> None:
    print(f"{row[0]:16}" + "".join(f"{cell:>9}" for cell in row[1:]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=2, help="layers of the models, 101 MB each beside 131 MB")
    parser.add_argument("--large", action="store_true", help="models of 2.3 GB, beyond the memory limit")
    parser.add_argument("--only", nargs="*", default=[], help="names of cases, svd, thousand")
    parser.add_argument("--times", type=int, default=2, help="runs of ours and of the floor; the fastest counts")
    parser.add_argument("--folder", type=Path, help="where inputs and outputs lie; the system's temporary folder")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    layers = 22 if arguments.large else arguments.layers
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        call = [sys.executable, __file__, "--child"]
        print(f"sha256 {sha256_gb_per_s():.2f} GB/s, {fsyncs_per_s(root):.0f} fsyncs/s, {os.cpu_count()} cores")
        cases = [one for one in CASES if not arguments.only or one.name in arguments.only]
        if cases:
            (root / "llama").mkdir()
            request = ["make", str(root / "llama"), "", 2048, 5504, layers, 16_000]
            subprocess.run([*call, json.dumps(request)], check=True)
            size = (root / "llama/base/model.safetensors").stat().st_size
            print(f"models of {size / 1e6:.0f} MB of bfloat16, limit {MEMORY_BYTES / 1e9:.1f} GB")
            show(HEAD)
        for case in cases:
            compare(case, root / "llama", arguments.times)
        seven = [one for one in SEVEN if not arguments.only or one.name in arguments.only]
        if seven or not arguments.only or {"svd", "thousand"} & {*arguments.only}:
            (root / "seven").mkdir()
            subprocess.run([*call, json.dumps(["make_seven", str(root / "seven"), ""])], check=True)
        if seven:
            size = (root / "seven/base/model.safetensors").stat().st_size
            print(f"a model of {size / 1e6:.0f} MB of bfloat16")
            show(HEAD)
        for case in seven:
            compare(case, root / "seven", arguments.times)
        if not arguments.only or "svd" in arguments.only:
            compare_svd(root / "seven", 8)
        if not arguments.only or "thousand" in arguments.only:
            compare_thousand(root / "seven")


if __name__ == "__main__":
    main()
