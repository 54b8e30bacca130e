"""The process that writes a recipe as files for another engine: reads an `Order` on stdin, answers on stdout, ends.

A weighted sum of LoRAs becomes one LoRA, exactly, with one rank and one alpha for all modules: engines differ in
whether they read peft's rank_pattern and alpha_pattern, and one that does not would scale wrongly without a word. What
is no such sum becomes the merged model, where the engine may take one of the same shapes as its base.
"""

import json
import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from adapterhub.errors import AdapterHubError
from adapterhub.hub.errors import InvalidRequest, UnfitPatch
from adapterhub.hub.serving.materials import UNFINISHED, Form, Material, Order
from adapterhub.hub.serving.protocol import VariantSpec, error_to_json
from adapterhub.hub.serving.variants import planned, refusals
from adapterhub.merging import engine, serveability
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.contracts import base_template
from adapterhub.merging.patch import Export
from adapterhub.merging.patterns import matching, read_pattern
from adapterhub.merging.peft_adapter import CONFIG, PREFIX, WEIGHTS
from adapterhub.merging.plan import Plan
from adapterhub.merging.serveable import engines
from adapterhub.merging.serving_features import look
from adapterhub.merging.serving_rules import asked

_FACTORS = (".lora_A.weight", ".lora_B.weight")
_ANY_DTYPE = frozenset({"dtype", "torch_dtype"})


def write(order: Order) -> Material:
    """What was written, in the first form that is exact and that the engine takes.

    Raises UnfitPatch, InvalidRequest, TooLarge, with the reasons against each form.
    """
    if order.is_base:
        return _model(order, VariantSpec(order.spec.vid, order.spec.base.reference, (order.spec.base,)))
    try:
        return _lora(order)
    except (UnfitPatch, InvalidRequest) as error:
        if not order.may_be_dense:
            hint = "to serve it as a merged model, set ADAPTERHUB_ENGINE_DENSE, or use the embedded engine"
            raise type(error)(f"the external engine takes one LoRA: {error}; {hint}") from error
        no_lora = error
    try:
        return _model(order, order.spec)
    except (UnfitPatch, InvalidRequest) as error:
        raise type(error)(f"{error} (nor as a LoRA: {no_lora})") from error


def _lora(order: Order) -> Material:
    plan = planned(order.spec, order.memory_bytes, as_kind="lora")
    assert plan.export is not None
    rank = _checked_rank(plan.export)
    if rank <= order.max_rank:
        return _written(order, plan, order.lora, "lora")
    if not order.may_truncate:
        raise InvalidRequest(
            f"the sum has rank {rank} and the engine takes {order.max_rank} (ADAPTERHUB_ENGINE_MAX_RANK); start it "
            "with a larger --max-lora-rank, or set ADAPTERHUB_ENGINE_TRUNCATE for the nearest one of that rank"
        )
    nearest = planned(order.spec, order.memory_bytes, as_kind=f"lora:r={order.max_rank}")
    return _written(order, nearest, order.truncated, "lora")


def _checked_rank(export: Export) -> int:
    """The largest rank of the modules. Raises UnfitPatch for what an engine would not apply, or not wholly."""
    config = export.files[CONFIG]
    for key, what in (("use_dora", "it is a DoRA"), ("layer_replication", "it repeats layers of its base")):
        if config.get(key):
            raise UnfitPatch(f"{what}, which engines do not apply")
    for tensor in export.tensors:
        if not tensor.name.endswith(_FACTORS) or len(tensor.shape) != 2:
            raise UnfitPatch(f"{tensor.name.removeprefix(PREFIX)}: engines apply LoRAs of linear layers alone")
    return max(tensor.shape[0] for tensor in export.tensors if tensor.factor == "A")


def _model(order: Order, spec: VariantSpec) -> Material:
    plan = planned(spec, order.memory_bytes)
    stored = {name: (one.dtype, one.shape) for name, one in plan.base.tensors.items()}
    made = {one.name: (one.dtype, one.shape) for one in plan.outputs}
    if made != stored:
        name = min(one for one in made.keys() | stored.keys() if made.get(one) != stored.get(one))
        raise UnfitPatch(f"{name}: the merged model has other tensors than its base, and an engine keeps its shapes")
    given, found = _shape_of(plan.base.config), _shape_of(plan.config)
    if given != found or plan.files or plan.heads:
        raise UnfitPatch("the merged model has another configuration, tokenizer or head than its base")
    return _written(order, plan, order.model, "model")


def _shape_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in config.items() if key not in _ANY_DTYPE}


def _written(order: Order, plan: Plan, name: str, form: Form) -> Material:
    """The plan's result in a folder of that name, which appears whole."""
    has_own_template = _has_own_template(plan)
    unfinished = order.folder / f"{name}{UNFINISHED}"
    shutil.rmtree(unfinished, ignore_errors=True)
    with refusals():
        result = engine.run(plan, unfinished, threads=order.threads)
    rank = 0
    if form == "lora":
        rank = _level(unfinished)
        if order.engine:
            rank = _fitted(unfinished, order.engine, plan.base)
    size_bytes = sum(file.stat().st_size for file in unfinished.glob("*.safetensors"))
    error = float(result.report.get("reduction", {}).get("error", 0.0))
    material = Material(name, form, size_bytes, rank, error, has_own_template, order.engine if form == "lora" else "")
    material.write(unfinished)
    target = order.folder / name
    shutil.rmtree(target, ignore_errors=True)  # one that is not whole, else it would have been found
    unfinished.rename(target)
    return material


def _has_own_template(plan: Plan) -> bool:
    """Whether chats of it differ from the base's. Raises UnfitPatch for patches that want anything else obeyed."""
    if plan.attachments:
        names = ", ".join(one.name for one in plan.attachments)
        raise UnfitPatch(f"{names}: works at run time, which the embedded engine alone can do")
    wanted = dict(plan.contract)
    template = wanted.pop("chat_template", None)
    if wanted:
        raise UnfitPatch(f"its patches want {', '.join(sorted(wanted))} obeyed, which the embedded engine alone does")
    return template is not None and template != base_template(plan.base)


def _level(folder: Path) -> int:
    """Give all modules of an adapter one rank and an alpha equal to it: zeros fill up, the scaling goes into B.

    Only where they differ; else the file stays as it was written. Gives the rank.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    ranks, alphas = (read_pattern(config.get(key) or {}, key) for key in ("rank_pattern", "alpha_pattern"))
    if not ranks and not alphas:
        return int(config["r"])
    tensors = load_file(folder / WEIGHTS)
    rank = max(len(one) for name, one in tensors.items() if name.endswith(_FACTORS[0]))
    for name in list(tensors):
        if name.endswith(_FACTORS[0]):
            module = name.removeprefix(PREFIX).removesuffix(_FACTORS[0])
            other = name.removesuffix(_FACTORS[0]) + _FACTORS[1]
            A, B = tensors[name], tensors[other]
            scaling = matching(alphas, module, config["lora_alpha"]) / len(A)
            tensors[name] = torch.cat([A, A.new_zeros(rank - len(A), A.shape[1])])  # (rank, in)
            scaled = B if scaling == 1 else B.float() * scaling
            tensors[other] = torch.cat([scaled, scaled.new_zeros(len(B), rank - len(A))], dim=1)  # (out, rank)
    config |= {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return rank


def _fitted(folder: Path, engine: str, base: Checkpoint) -> int:
    """Give an adapter the form that the engine applies whole, where that is another one. Gives the largest rank.

    Raises UnfitPatch for one of which the engine would leave out, or misread, a part.
    """
    name, _, version = engine.partition("@")
    chosen, known = asked(engine if version[:1].isdigit() else name, engines())
    found = look(LocalFolder(folder), "", chosen, known, base)
    verdict = serveability.judge(found)
    if verdict.lost is not None:
        module = verdict.lost.tensor.removeprefix(PREFIX)
        raise UnfitPatch(f"{module}: {chosen.title} would not apply it as it is meant: {verdict.lost.why}")
    if verdict.verdict == "after a rewrite":
        with TemporaryDirectory(dir=folder.parent, suffix=UNFINISHED) as place:
            other = Path(place) / "adapter"
            serveability.write(found, verdict, other)
            for file in (WEIGHTS, CONFIG):
                (other / file).replace(folder / file)
        return _level(folder)
    return verdict.rank or 0


def main() -> None:
    """Do one order."""
    logging.basicConfig(level="WARNING", format="%(levelname)s %(name)s: %(message)s")
    order = Order.from_json(json.load(sys.stdin))
    torch.set_num_threads(order.threads)
    try:
        answer = asdict(write(order))
    except AdapterHubError as error:
        answer = error_to_json(error)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
