"""Runs a plan: tensor by tensor, in bounded memory, into a folder that appears whole or never.

Inputs are mapped, outputs written at planned offsets and hashed on the way. Each tensor is one worker's, so memory is
that of as many tensors as there are threads, and bytes are the same for any number of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.merging.blocks import BLOCK_BYTES, BLOCKS
from adapterhub.merging.card import card
from adapterhub.merging.checkpoint import DTYPE_BITS, SafetensorsWriter
from adapterhub.merging.container import LayoutWriter
from adapterhub.merging.container import layout as safetensors_layout
from adapterhub.merging.effects import part, read
from adapterhub.merging.encodings import as_array
from adapterhub.merging.errors import Cancelled, NonFinite
from adapterhub.merging.execution import FILE as EXECUTION
from adapterhub.merging.execution import execution
from adapterhub.merging.fold import Folding, Norms, fold
from adapterhub.merging.folders import file_digest
from adapterhub.merging.gguf import gguf_layout
from adapterhub.merging.lowrank_reduction import reduced
from adapterhub.merging.manifest import MANIFEST
from adapterhub.merging.native import WEIGHTS, StoredTerm, write_patch
from adapterhub.merging.ops import passes
from adapterhub.merging.ops.lowrank import Factors, concatenate
from adapterhub.merging.ops.tensors import dtype_name, is_finite, to_bytes, torch_dtype
from adapterhub.merging.results import ResultFile, ResultFolder
from adapterhub.merging.scopes import with_limits
from adapterhub.merging.terms import terms
from adapterhub.merging.workers import each, one_thread_each

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.checkpoint import TensorHandle
    from adapterhub.merging.patch import Export, ExportTensor
    from adapterhub.merging.plan import Plan
    from adapterhub.merging.reduction import Reduction
    from adapterhub.merging.steps import OutputTensor

MOST_LOST = 0.5
"""‖rounding error‖/‖Δ‖ above which most of a tensor's delta is said to be lost."""

MOST_QUANTISATION = 1.0
"""‖W - dequant(W)‖/‖Δ‖ above which a patch is said to be made of its base's quantisation more than of its task."""

PART_BYTES = 16 << 20
"""Bytes that are copied at a time."""

MOST_BLOCKS = 128
"""Most blocks of a file in memory, 512 MiB of them, however much there is."""

SHARD_BYTES = 5_000_000_000
"""Most bytes of tensors in one weight file, unless a single tensor is larger."""


@dataclass(frozen=True)
class Progress:
    """How far a run is. done, total: bytes of tensors; message: the tensor just done."""

    done: int
    total: int
    message: str
    unit: str = "bytes"


@dataclass(frozen=True)
class Result:
    """What a run wrote. files: sorted by name. report: what was touched and what rounding took of it, JSON values."""

    files: Sequence[ResultFile]
    report: Mapping[str, Any]


def run(
    plan: Plan,
    out: Path,
    *,
    progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
    threads: int | None = None,
) -> Result:
    """Compute a plan into the folder `out`: a model, or an adapter where the plan says so.

    out: must not exist or be empty; it is there complete when this returns, and untouched when it raises. A process
    that was killed leaves its finished shards in a hidden folder beside it, and the next run of the same recipe into
    the same place takes those whose digests are right. progress and cancelled are called often; threads: None takes as
    many as torch would, within the plan's memory.
    Raises Cancelled, NonFinite, NotFoldable, FileExistsError, and PlanTooLarge where the disk cannot take the result.
    """

    def check() -> None:
        if cancelled():
            raise Cancelled("the merge was cancelled; nothing was written")

    with ResultFolder(out, plan.size_bytes, _key(plan)) as folder:
        workers = _workers(plan, threads)
        job = _Job(folder, progress, check, workers, _blocks(plan, workers))
        report = _write_model(plan, job) if plan.export is None else _write_patch(plan.export, plan.reduction, job)
        ran = execution(plan)
        folder.write("recipe.json", plan.canonical.encode())
        folder.write(EXECUTION, _json_bytes(ran))
        folder.write("README.md", card(plan, report).encode())
        check()
        return Result(folder.publish(), {**report, "execution": ran})


def variant(
    plan: Plan,
    *,
    device: str = "cpu",
    base: Mapping[str, torch.Tensor] | None = None,
    threads: int | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors that the plan changes, by their names in the result; the others are the base's own.

    base: tensors by their names in the base's checkpoint, already on the device, where they are resident; not modified,
    and each result has its tensor's dtype. Without it they are read from disk. Same arithmetic as `run`, so on a CPU
    the same bytes. Raises NonFinite, NotFoldable.
    """
    resident = base or {}

    def work(output: OutputTensor) -> tuple[str, torch.Tensor]:
        here = resident.get(output.base.name)
        if here is not None:
            output = replace(output, dtype=dtype_name(here.dtype))
        return output.name, fold(output, device=device, base=here)

    with one_thread_each():
        touched = [output for output in with_limits(plan.outputs) if output.name in plan.touched]
    passes.expect(sum(prod(output.shape) for output in touched))
    return dict(each(touched, work, threads if device == "cpu" else 1))


def write_export(export: Export, out: Path, more: Callable[[Path], Mapping[str, bytes]] = lambda path: {}) -> Result:
    """Compute a patch into the folder `out`, as `run` does with a plan.

    more: files to write beside it, made once the patch lies in the folder given. Raises NonFinite, FileExistsError.
    """
    with ResultFolder(out) as folder:
        report = _write_export(export, _Job(folder, lambda progress: None, lambda: None, None))
        for name, content in more(folder.path).items():
            folder.write(name, content)
        return Result(folder.publish(), report)


@dataclass(frozen=True)
class _Job:
    """One run: where it writes, whom it tells, when it stops."""

    folder: ResultFolder
    progress: Callable[[Progress], None]
    check: Callable[[], None]
    threads: int | None
    blocks: int = BLOCKS


@dataclass
class _Report:
    """Sums over tensors of what a fold changed."""

    touched: int = 0
    copied: int = 0
    delta: float = 0.0
    rounding: float = 0.0
    tensors: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, name: str, norms: Norms | None) -> None:
        if norms is None:
            self.copied += 1
            return
        self.touched += 1
        self.delta += norms.delta**2
        self.rounding += norms.rounding**2
        measured = {"delta_norm": norms.delta, **norms.told}
        if norms.delta:
            measured["lost_to_rounding"] = norms.rounding / norms.delta
            measured["survives"] = max(0.0, 1 - (norms.rounding / norms.delta) ** 2)
            if norms.quantisation is not None:
                measured["quantisation_error"] = norms.quantisation / norms.delta
        self.tensors[name] = measured

    def note(self) -> dict[str, Any]:
        """The sums as JSON that `join` takes."""
        return asdict(self)

    def join(self, note: Mapping[str, Any]) -> None:
        """Add the sums over other tensors."""
        self.touched += note["touched"]
        self.copied += note["copied"]
        self.delta += note["delta"]
        self.rounding += note["rounding"]
        self.tensors |= note["tensors"]

    def as_json(self) -> Mapping[str, Any]:
        """What the fold changed, as a whole and by tensor.

        delta_norm: ‖Δ‖. lost_to_rounding: ‖rounding error‖/‖Δ‖. survives: the share of Δ that the output format holds,
        1 - lost². quantisation_error: ‖W - dequant(W)‖/‖Δ‖ for patches trained on a quantised base. mostly_lost,
        mostly_quantisation: the tensors where rounding takes more than MOST_LOST, or the quantisation that a patch was
        trained around is larger than MOST_QUANTISATION times its delta.
        """
        lost = self.rounding / self.delta if self.delta else 0.0
        return {
            "tensors_touched": self.touched,
            "tensors_copied": self.copied,
            "delta_norm": self.delta**0.5,
            "lost_to_rounding": lost**0.5,
            "survives": max(0.0, 1 - lost),
            "mostly_lost": self._above("lost_to_rounding", MOST_LOST),
            "mostly_quantisation": self._above("quantisation_error", MOST_QUANTISATION),
            "tensors": dict(sorted(self.tensors.items())),
        }

    def _above(self, measure: str, limit: float) -> dict[str, float]:
        found = {name: measured[measure] for name, measured in self.tensors.items() if measure in measured}
        return {name: value for name, value in sorted(found.items()) if value > limit}


def _key(plan: Plan) -> str:
    """Names what a run makes, to the byte: the recipe, and the versions that arithmetic depends on."""
    import torch

    return json.dumps([plan.recipe_digest, plan.as_kind, SHARD_BYTES, version("adapterhub"), torch.__version__])


def _write_model(plan: Plan, job: _Job) -> Mapping[str, Any]:
    stem = _stem(plan.config)
    with one_thread_each():
        shards = _shards(with_limits(plan.outputs, job.check), stem)
    total = sum(map(_size_bytes, plan.outputs))
    passes.expect(sum(prod(output.shape) for output in plan.outputs if not output.is_copy))
    done, report = 0, _Report()
    for name, outputs in shards.items():
        note = job.folder.reuse(name)
        if note is not None:
            done += sum(map(_size_bytes, outputs))
            report.join(note)
            job.progress(Progress(done, total, name))
            continue
        part = _Report()
        planned = {output.name: (output.dtype, output.shape) for output in outputs}
        with SafetensorsWriter(job.folder.path / name, planned, plan.metadata, job.blocks) as writer:
            by_name = {output.name: output for output in outputs}
            in_order = [by_name[tensor] for tensor in writer.layout.offsets]  # so that the hash follows the writes
            for output, norms in each(in_order, lambda one: _write(one, writer, job.check), job.threads):
                done += _size_bytes(output)
                part.add(output.name, norms)
                job.progress(Progress(done, total, output.name))
            job.folder.keep(name, *writer.finish(), part.note())
        report.join(part.note())
    if len(shards) > 1:
        job.folder.write(f"{stem}.safetensors.index.json", _index(shards, total))
    job.folder.write("config.json", _json_bytes(plan.config))
    _write_heads(plan, job)
    for source in plan.copied_files:
        assert plan.base.folder is not None  # the plan found the names there
        job.folder.copy(plan.base.folder, source, source.removeprefix(plan.base.prefix).lstrip("/"))
    for name, content in plan.files.items():
        job.folder.write(name, content)
    return report.as_json()


def _write_heads(plan: Plan, job: _Job) -> None:
    """Each head that is kept beside the result, as a patch on it in a folder of its own."""
    for head in plan.heads:
        path = f"heads/{head.name}"
        stored = {term.site: _whole(term.fields["value"]) for term in head.terms}
        base = {"model_type": plan.config.get("model_type")}
        made = {"made_by": "merge", "recipe": str(plan.recipe)}
        contract = None if head.labels is None else {"label_map": dict(head.labels)}
        write_patch(job.folder.path / path, sites=stored, base=base, provenance=made, contract=contract)
        for name in (MANIFEST, WEIGHTS):
            file = job.folder.path / path / name
            job.folder.add(f"{path}/{name}", file.stat().st_size, file_digest(file))


def _whole(value: TensorHandle) -> StoredTerm:
    """A parameter that stands in the base's place, and means nothing as a difference from it."""
    fields = {"value": (value.dtype, as_array(value))}
    return StoredTerm("replace", value.shape, fields, options={"reinitialised": True})


def _write(
    output: OutputTensor, writer: SafetensorsWriter, check: Callable[[], None]
) -> tuple[OutputTensor, Norms | None]:
    """Compute one tensor and put it into the file. Gives what rounding took, None for bytes that were copied."""
    check()
    if output.is_copy:
        writer.write_parts(output.name, _stored_parts(output.base, check))
        return output, None
    folding = Folding(output, check=check)
    writer.write_parts(output.name, (to_bytes(rows) for _, rows in folding))
    return output, folding.norms()


def _stored_parts(handle: TensorHandle, check: Callable[[], None]) -> Iterator[memoryview]:
    """A tensor's stored bytes, of which no more than PART_BYTES are held at a time."""
    stored = handle.read()
    for start in range(0, len(stored), PART_BYTES):
        check()
        yield stored[start : start + PART_BYTES]
        handle.release()


def _workers(plan: Plan, threads: int | None) -> int:
    """How many tensors may be in work at a time within the plan's memory: at least one, at most `threads`."""
    import torch

    fit = max(1, plan.memory_bytes // max(1, plan.peak_bytes))
    return min(fit, threads or torch.get_num_threads())


def _blocks(plan: Plan, workers: int) -> int:
    """How many blocks of a file may lie in memory: what several workers make lies there until it is hashed in order."""
    left = max(0, plan.memory_bytes - workers * plan.peak_bytes)
    return min(MOST_BLOCKS, max(BLOCKS, workers + 3) + left // (16 * BLOCK_BYTES))


def _write_patch(export: Export, reduction: Reduction | None, job: _Job) -> Mapping[str, Any]:
    if reduction is None:
        return _write_export(export, job)
    with one_thread_each():
        export, lost = reduced(reduction, job.check)
    return {**_write_export(export, job), "reduction": lost}


def _write_export(export: Export, job: _Job) -> Mapping[str, Any]:
    planned = {tensor.name: (tensor.dtype, tensor.shape) for tensor in export.tensors}
    target = job.folder.path / export.weights
    total, done = sum(map(_size_bytes, export.tensors)), 0
    layout = gguf_layout(planned, export.pairs) if export.pairs else safetensors_layout(planned, export.metadata)
    with LayoutWriter(target, layout) as writer:
        for tensor in export.tensors:
            job.check()
            writer.write(tensor.name, to_bytes(_exported(tensor)))
            done += _size_bytes(tensor)
            job.progress(Progress(done, total, tensor.name))
        job.folder.add(export.weights, *writer.finish())
    for name, content in export.files.items():
        job.folder.write(name, _json_bytes(content))
    return {"tensors_touched": len(export.tensors), "tensors_copied": 0}


def _exported(tensor: ExportTensor) -> torch.Tensor:
    """The values of one tensor of a patch, rows in the order asked for. Raises NonFinite."""
    values = _concatenated(tensor) if tensor.stored is None else read(tensor.stored).reshape(tensor.shape)
    if not is_finite(values):
        raise NonFinite(tensor.name, "the patches or their weighted sum")
    return values[list(tensor.rows)] if tensor.rows else values


def _concatenated(tensor: ExportTensor) -> torch.Tensor:
    """One side of the joint low-rank form of several terms, weights and scales in B, in float32."""
    pieces = []
    for weight, term in tensor.parts:
        spec = terms()[term.term]
        assert spec.factors is not None  # the export chose such terms
        assert spec.factor_sizes is not None
        shapes = {name: handle.shape for name, handle in term.fields.items()}
        rows, _, columns = spec.factor_sizes(shapes, term.options)
        pieces.append(Factors(*spec.factors(part(term, weight), (rows, columns))))
    left, right = concatenate(pieces)
    A, B = (left.T, right.T) if tensor.is_transposed else (right, left)
    return (A if tensor.factor == "A" else B).reshape(tensor.shape).to(torch_dtype(tensor.dtype)).contiguous()


def _stem(config: Mapping[str, Any]) -> str:
    """How the library that loads a model of this config.json calls its weights: diffusers writes _class_name there."""
    return "diffusion_pytorch_model" if "_diffusers_version" in config or "_class_name" in config else "model"


def _shards(outputs: Iterable[OutputTensor], stem: str) -> Mapping[str, Sequence[OutputTensor]]:
    """Weight files by name, each of at most SHARD_BYTES, filled in the order of tensor names."""
    groups: list[list[OutputTensor]] = [[]]
    room = SHARD_BYTES
    for output in sorted(outputs, key=lambda output: output.name):
        if groups[-1] and _size_bytes(output) > room:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(output)
        room -= _size_bytes(output)
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, 1)}


def _index(shards: Mapping[str, Sequence[OutputTensor]], total: int) -> bytes:
    where = {output.name: name for name, outputs in shards.items() for output in outputs}
    return _json_bytes({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})


def _size_bytes(tensor: OutputTensor | ExportTensor) -> int:
    return prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
