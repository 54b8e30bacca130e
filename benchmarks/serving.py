"""Serving on a CPU: many variants of one base, beside the base alone, peft's mixed batches and one process a model.

    python benchmarks/serving.py [--hidden 1024] [--layers 12] [--variants 8] [--clients 16] [--only NAME ...]

The base is a random Llama of 100 M parameters or more, in float32, for which every CPU has fast products of several
rows; LoRAs of rank 16 lie on all its linear layers, for the measure of memory on those of queries and values. Every
figure is measured in this run. Throughput is tokens a second of the engine as a process, by as many clients as there
are, each with one request after another; peers compute in processes of their own on as many threads as the engine has.
The floor of a merge is a plain copy of the tensors that it makes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.hub.serving.client import EngineClient
    from adapterhub.hub.serving.protocol import VariantSpec

RANK = 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VOCABULARY = 16_000
PROMPT_TOKENS = 16
POOL_BYTES = 8 << 30


# ---- inputs ----------------------------------------------------------------------------------------------------------


def make(
    root: Path, hidden: int, layers: int, count: int, dtype: str = "bfloat16", targets: Sequence[str] = TARGETS
) -> None:
    """The base, its tokenizer of whole words, and the LoRAs, as their libraries save them."""
    import torch
    import transformers
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
    )
    kind: torch.dtype = getattr(torch, dtype)
    model = transformers.LlamaForCausalLM(config).to(kind)
    model.save_pretrained(root / "base")
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(root / "base")
    config_of_loras = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    config_of_loras |= {"target_modules": list(targets), "base_model_name_or_path": "bench/base"}
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items() if name.split(".")[-2] in targets}
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name, (out, fan_in) in shapes.items():
            stem = "base_model.model." + name.removesuffix(".weight")
            A = torch.randn(RANK, fan_in, generator=generator) / fan_in**0.5
            tensors[f"{stem}.lora_A.weight"] = A.to(kind)
            tensors[f"{stem}.lora_B.weight"] = (torch.randn(out, RANK, generator=generator) * 0.02).to(kind)
        (root / f"lora{number}").mkdir()
        save_file(tensors, root / f"lora{number}" / "adapter_model.safetensors", metadata={"format": "pt"})
        (root / f"lora{number}" / "adapter_config.json").write_text(json.dumps(config_of_loras))


def quantise(root: Path) -> None:
    """The base as bitsandbytes stores it in nf4, computing in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    config: Any = BitsAndBytesConfig
    how = config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(root / "base", quantization_config=how, device_map="cpu", dtype=torch.float32)
    model.save_pretrained(root / "nf4")
    tokenizer: Any = AutoTokenizer.from_pretrained(root / "base")
    tokenizer.save_pretrained(root / "nf4")


def spec_of(root: Path, number: int | None, name: str = "base") -> VariantSpec:
    """The base of that name alone, or with one LoRA; digests as the hub would know them."""
    from adapterhub.hub.serving.protocol import Source, VariantSpec
    from adapterhub.merging.folders import LocalFolder, MappedFolder

    def source(name: str, kind: str) -> Source:
        local = LocalFolder(root / name)
        files = {one: (root / name / one, f"sha256:{name}/{one}", local.size(one)) for one in local.names()}
        return Source(f"bench/{name}", f"bench/{name}@{'0' * 40}", kind, MappedFolder(files))

    base = source(name, "model")
    if number is None:
        return VariantSpec(f"sha256:{name}", f"bench/{name}", (base,))
    expression = f"bench/{name} + bench/lora{number}"
    return VariantSpec(f"sha256:{expression}", expression, (base, source(f"lora{number}", "lora")))


# ---- the engine ------------------------------------------------------------------------------------------------------


def asked_of(client: int, turn: int, tokens: int, how: str | None) -> Any:
    from adapterhub.hub.serving.protocol import Generate, Sampling

    prompt = [(client * 977 + turn * 131 + place * 17) % VOCABULARY for place in range(PROMPT_TOKENS)]
    # no end of text is said by the model's configuration that random weights would not pass by
    return Generate(prompt=prompt, max_tokens=tokens, sampling=Sampling(temperature=0), execution=how)


async def answered(engine: EngineClient, spec: VariantSpec, request: Any) -> tuple[int, float]:
    """Tokens of an answer, and seconds to the first."""
    from adapterhub.hub.serving.protocol import Delta, Finished

    began, first, count = time.perf_counter(), 0.0, 0
    async for event in engine.generate(spec, request):
        if isinstance(event, Delta) and not first:
            first = time.perf_counter() - began
        if isinstance(event, Finished):
            count += event.completion_tokens
    return count, first


async def throughput_of(
    engine: EngineClient, specs: Sequence[VariantSpec], clients: int, tokens: int, how: str | None, turns: int = 3
) -> float:
    """Tokens a second of clients that each ask one of the variants, again and again."""

    async def one(client: int) -> int:
        spec = specs[client % len(specs)]
        return sum([(await answered(engine, spec, asked_of(client, turn, tokens, how)))[0] for turn in range(turns)])

    await asyncio.gather(*(answered(engine, spec, asked_of(0, 0, 2, how)) for spec in specs))
    began = time.perf_counter()
    counts = await asyncio.gather(*(one(client) for client in range(clients)))
    return sum(counts) / (time.perf_counter() - began)


async def with_engine(threads: int, work: Callable[[EngineClient], Awaitable[Any]], device: str = "cpu") -> Any:
    from adapterhub.hub.serving.client import EngineClient
    from adapterhub.hub.settings import Settings

    engine = EngineClient(Settings(device=device, threads=threads, pool_bytes=POOL_BYTES))
    try:
        return await work(engine)
    finally:
        await engine.stop()


# ---- peers, each in a process of its own ---------------------------------------------------------------------------


def peft_mixed(root: Path, threads: int, count: int, rows: int, tokens: int) -> float:
    """Tokens a second of peft's mixed batches: generate with `adapter_names`, one row a client."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    model: Any = PeftModel.from_pretrained(base, str(root / "lora0"), adapter_name="lora0")
    for number in range(1, count):
        model.load_adapter(str(root / f"lora{number}"), adapter_name=f"lora{number}")
    model.eval()
    ids = torch.randint(0, VOCABULARY, (rows, PROMPT_TOKENS))
    names = [f"lora{row % count}" for row in range(rows)]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "adapter_names": names, "do_sample": False}
    with torch.inference_mode():
        model.generate(**given, max_new_tokens=2, min_new_tokens=2, pad_token_id=0)
        began = time.perf_counter()
        model.generate(**given, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
        return rows * tokens / (time.perf_counter() - began)


def merged_alone(root: Path, threads: int, number: int, rows: int, tokens: int, begin_at: float) -> float:
    """One process of one merged model: its seconds for batches of its clients, begun when the others begin."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    model: Any = PeftModel.from_pretrained(base, str(root / f"lora{number}")).merge_and_unload().eval()
    ids = torch.randint(0, VOCABULARY, (rows, PROMPT_TOKENS))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(**given, max_new_tokens=2, min_new_tokens=2)
        while time.time() < begin_at:
            time.sleep(0.01)
        began = time.perf_counter()
        model.generate(**given, max_new_tokens=tokens, min_new_tokens=tokens)
        return time.perf_counter() - began


def folding(root: Path, threads: int) -> Mapping[str, float]:
    """Seconds of one LoRA onto the resident base, of a plain copy of what that makes, and of peft's merge."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from adapterhub.hub.serving import loading, variants
    from adapterhub.hub.serving.resident import Base

    torch.set_num_threads(threads)
    spec = spec_of(root, 0)
    shapes = {name: handle.shape for name, handle in loading.checkpoint(spec.base).tensors.items()}
    base = Base("base", loading.load(spec.base, torch.device("cpu")), shapes)
    plan = variants.planned(spec, POOL_BYTES)
    ours, copies = [], []
    for _ in range(5):
        began = time.perf_counter()
        tensors = variants.tensors(plan, base)
        ours.append(time.perf_counter() - began)
        pristine = base.tensors()
        began = time.perf_counter()
        copied = {name: pristine[name].clone() for name in tensors}
        copies.append(time.perf_counter() - began)
        del tensors, copied
    made = AutoModelForCausalLM.from_pretrained(root / "base")
    tuned: Any = PeftModel.from_pretrained(made, str(root / "lora0"))
    theirs = []
    for _ in range(3):
        began = time.perf_counter()
        tuned.merge_adapter()
        theirs.append(time.perf_counter() - began)
        tuned.unmerge_adapter()
    return {"ours": min(ours), "copy": min(copies), "peft": min(theirs)}


def generated(root: Path, threads: int, name: str, rows: int, tokens: int) -> float:
    """Tokens a second of transformers' generate, with the library that the model's files name."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(root / name, device_map="cpu").eval()
    ids = torch.randint(0, VOCABULARY, (rows, PROMPT_TOKENS))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(**given, max_new_tokens=2, min_new_tokens=2)
        began = time.perf_counter()
        model.generate(**given, max_new_tokens=tokens, min_new_tokens=tokens)
        return rows * tokens / (time.perf_counter() - began)


CHILDREN = {one.__name__: one for one in (make, quantise, peft_mixed, merged_alone, folding, generated)}


def start(what: str, *arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", json.dumps([what, *map(_plain, arguments)])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args}: ended with {process.returncode}")
    return json.loads(out.splitlines()[-1])


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def child(request: str) -> None:
    what, root, *arguments = json.loads(request)
    print(json.dumps(CHILDREN[what](Path(root), *arguments)))


# ---- cases -----------------------------------------------------------------------------------------------------------


def show(what: str, figure: str, wanted: str = "") -> None:
    print(f"{what:58} {figure:>28}  {wanted}", flush=True)


def floors() -> str:
    """What this machine does by itself: sha256, and the threads."""
    block = bytes(64 << 20)
    began = time.perf_counter()
    hashlib.sha256(block).digest()
    return f"sha256 {len(block) / (time.perf_counter() - began) / 1e9:.2f} GB/s, {os.cpu_count()} cores"


async def memory(engine: EngineClient, root: Path, count: int) -> None:
    for number in [None, *range(count)]:
        await answered(engine, spec_of(root, number), asked_of(0, 0, 2, None if number is None else "run-time"))
    state = await engine.state()
    base = next(one["size_bytes"] for one in state["resident"] if one["kind"] == "base")
    held = sum(one["size_bytes"] for one in state["resident"])
    process = int(Path(f"/proc/{state['pid']}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024
    show(f"{count} LoRA variants of one base, answered", f"{held / base:.2f} x the base's bytes", "< 2")
    show("", f"({base / 1e6:.0f} MB; process {process / 1e6:.0f} MB)")


async def first_token(engine: EngineClient, root: Path, tokens: int) -> None:
    await answered(engine, spec_of(root, None), asked_of(0, 0, 2, None))
    cold, warm, merged = [], [], []
    for number in range(1, 4):
        spec = spec_of(root, number)
        cold.append((await answered(engine, spec, asked_of(1, number, 2, None)))[1])
        warm.append((await answered(engine, spec, asked_of(2, number, 2, None)))[1])
        merged.append((await answered(engine, spec, asked_of(3, number, 2, "merged")))[1])
    show(
        "first token of a never-seen variant / of a warm one", f"{min(cold) * 1000:.0f} ms / {min(warm) * 1000:.0f} ms"
    )
    show("the same where it is merged first", f"{min(merged) * 1000:.0f} ms")


async def throughput(engine: EngineClient, root: Path, options: argparse.Namespace) -> Mapping[str, float]:
    several = [spec_of(root, number) for number in range(options.variants)]
    rows = {
        "base": ([spec_of(root, None)], None),
        "one merged": (several[:1], "merged"),
        "one beside": (several[:1], "run-time"),
        "many": (several, None),
        "base again": ([spec_of(root, None)], None),
    }
    return {
        name: await throughput_of(engine, specs, options.clients, options.tokens, how)
        for name, (specs, how) in rows.items()
    }


async def _packed(engine: EngineClient, root: Path, options: argparse.Namespace) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name in ("base", "nf4"):
        for clients in (1, options.clients):
            spec = [spec_of(root, None, name)]
            found[f"{name} {clients}"] = await throughput_of(engine, spec, clients, options.tokens, None)
    several = [spec_of(root, number, "nf4") for number in range(options.variants)]
    found["loras"] = await throughput_of(engine, several, options.clients, options.tokens, None)
    state = await engine.state()
    found |= {one["name"].split("@")[0]: one["size_bytes"] for one in state["resident"] if one["kind"] == "base"}
    return found


def packed(root: Path, options: argparse.Namespace) -> None:
    """A base of 4 bits, its weights widened at each pass, beside the same base in float32."""
    result(start("quantise", root))
    found = asyncio.run(with_engine(options.threads, lambda engine: _packed(engine, root, options)))
    whole, bits = found["bench/base"], found["bench/nf4"]
    show("the base in nf4, embeddings as they were", f"{bits / whole:.2f} x the bytes in float32")
    for clients in (1, options.clients):
        ratio = found[f"nf4 {clients}"] / found[f"base {clients}"]
        show(f"  {clients} clients", f"{ratio:.2f} x the speed in float32", f"({found[f'nf4 {clients}']:.0f} tokens/s)")
        theirs = result(start("generated", root, options.threads, "nf4", clients, options.tokens))
        show("    bitsandbytes' by transformers' generate", f"{theirs:.0f} tokens/s")
    show(f"  {options.variants} LoRAs beside it", f"{found['loras'] / found[f'nf4 {options.clients}']:.2f} x nf4 alone")


def compare(root: Path, options: argparse.Namespace) -> None:
    threads, rows, tokens = options.threads, options.clients, options.tokens
    found = asyncio.run(with_engine(threads, lambda engine: throughput(engine, root, options)))
    base = max(found["base"], found["base again"])
    show(f"base alone, {rows} clients", f"{base:.0f} tokens/s", f"({found['base']:.0f} and {found['base again']:.0f})")
    show("one merged variant, as many", f"{found['one merged'] / base:.2f} x the base", ">= 0.98")
    show("one variant beside the weights", f"{found['one beside'] / base:.2f} x the base")
    show(f"{options.variants} variants, {rows} clients", f"{found['many'] / base:.2f} x the base", ">= 0.8")
    mixed = result(start("peft_mixed", root, threads, options.variants, rows, tokens))
    show("  peft's mixed batches of them", f"{mixed:.0f} tokens/s", f"ours {found['many'] / mixed:.2f} x")
    each = max(1, rows // options.variants)
    begin_at = time.time() + 20 + 5 * options.variants
    processes = [start("merged_alone", root, 1, n, each, tokens, begin_at) for n in range(options.variants)]
    seconds = max(result(process) for process in processes)
    alone = options.variants * each * tokens / seconds
    show("  one process per merged model", f"{alone:.0f} tokens/s", f"ours {found['many'] / alone:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--many", type=int, default=100, help="variants for the measure of memory")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", default=[], help="memory, fold, first, throughput, packed")
    parser.add_argument("--folder", type=Path, help="where inputs lie; the system's temporary folder")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    wanted = options.only or ["fold", "first", "throughput", "packed", "memory"]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        result(start("make", root, options.hidden, options.layers, max(options.variants, 4), options.dtype))
        size = (root / "base/model.safetensors").stat().st_size / (2 if options.dtype == "bfloat16" else 4)
        print(f"{floors()}, {options.threads} threads; base of {size / 1e6:.0f} M parameters in {options.dtype}")
        if "fold" in wanted:
            fold = result(start("folding", root, options.threads))
            show(
                "a LoRA of rank 16 onto the resident base",
                f"{fold['ours'] / fold['copy']:.2f} x a plain copy",
                "<= 2.5, aim 2",
            )
            show(
                "  peft's merge of it",
                f"{fold['peft'] / fold['copy']:.2f} x",
                f"({fold['copy'] * 1000:.0f} ms the copy)",
            )
        if "first" in wanted:
            asyncio.run(with_engine(options.threads, lambda engine: first_token(engine, root, options.tokens)))
        if "throughput" in wanted:
            compare(root, options)
        if "packed" in wanted:
            packed(root, options)
        if "memory" in wanted:
            root = Path(folder, "many")
            root.mkdir()
            result(
                start("make", root, options.hidden, options.layers, options.many, options.dtype, ["q_proj", "v_proj"])
            )
            asyncio.run(with_engine(options.threads, lambda engine: memory(engine, root, options.many)))
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
