"""What the command does with files of this machine, without a server: a thin use of the merging library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from adapterhub.cli.client import repo_and_folder, split_revision
from adapterhub.cli.errors import Missing, Misused
from adapterhub.cli.remote import repository
from adapterhub.merging import doubts, finiteness, patches
from adapterhub.merging.checkpoint import Checkpoint, Folder, LocalFolder
from adapterhub.merging.errors import InvalidPatch, MergingError
from adapterhub.merging.forms import DENSE, forms, forms_of
from adapterhub.merging.patch import Facts
from adapterhub.merging.pickle_names import is_pickle
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.runtime import runtimes

if TYPE_CHECKING:
    from adapterhub.cli.client import Client
    from adapterhub.merging.engine import Progress, Result
    from adapterhub.merging.extract import Extracted
    from adapterhub.merging.recipes.nodes import Ref


def inspect(path: Path, *, reads_values: bool = False) -> list[dict[str, Any]]:
    """Facts of every patch and model at `path`; of a file, those that it belongs to. Raises BrokenContainer.

    reads_values: whether tensors are searched for NaN and infinity, which are problems then, and for other doubts.
    """
    folder = LocalFolder(path if path.is_dir() else path.resolve().parent)
    found = [facts for facts in patches.inspect(folder) if path.is_dir() or path.name in facts.files]
    return _told(folder, found, reads_values)


def inspect_repository(client: Client, name: str, *, reads_values: bool = False) -> list[dict[str, Any]]:
    """The same of "ns/name[/folder][@revision]" at a hub.

    Headers and configurations alone are fetched, all of it where values are read. Raises Missing, SourceFailed,
    BrokenContainer.
    """
    place, revision = split_revision(name)
    repo_id, path = repo_and_folder(place)
    with ExitStack() as stack:
        if reads_values:
            whole = stack.enter_context(TemporaryDirectory(prefix="adapterhub-inspect-"))
            folder: Folder = LocalFolder(client.pull(repo_id, Path(whole), revision))
        else:
            folder = stack.enter_context(repository(client, repo_id, revision))
        found = [one for one in patches.inspect(folder) if not path or f"{one.path}/".startswith(f"{path}/")]
        return _told(folder, found, reads_values)


def _told(folder: Folder, found: Sequence[Facts], reads_values: bool) -> list[dict[str, Any]]:
    if reads_values:
        found = [_with_values(folder, one) for one in found]
    return [asdict(facts) for facts in found]


def _with_values(folder: Folder, facts: Facts) -> Facts:
    wrong = (*facts.problems, *finiteness.problems(folder, facts.files))
    return replace(facts, problems=wrong, warnings=(*facts.warnings, *_doubts(folder, facts)))


def _doubts(folder: Folder, facts: Facts) -> Iterator[str]:
    """Warnings from a patch's values; none where it cannot be read, which is among its problems, or needs its base."""
    if facts.kind == "model" or facts.problems:
        return
    try:
        found = patches.read(folder, facts.path).terms
    except MergingError:
        return
    yield from doubts.of_values(found)
    yield from doubts.of_files(folder, facts.files)


def kinds() -> list[dict[str, Any]]:
    """What is known of each kind of patch: what it is, who folds it, whether it runs live, what it converts to."""
    return [
        {
            "name": name,
            "title": kind.title,
            "summary": kind.summary,
            "source": kind.source,
            "family": kind.family,
            "folds": kind.folds,
            "runs": name in runtimes(),
            "writes": kind.export is not None,
            "converts": list(forms_of(kind)),
        }
        for name, kind in patches.kinds().items()
    ]


def extract(base: Path, tuned: Path, form: str, out: Path) -> tuple[list[Extracted], str]:
    """The parameters of the patch that was made of two local models, and its digest. Raises as `extract.extract`."""
    from adapterhub.merging import extract as extraction

    before, after = (Checkpoint.open(LocalFolder(path), name=path.resolve().name) for path in (base, tuned))
    return extraction.extract(before, after, form, out)


def merge(
    expression: str,
    folders: Mapping[str, Path],
    out: Path,
    *,
    as_kind: str | None,
    dtype: str | None,
    memory_bytes: int,
    progress: Callable[[Progress], None],
) -> Result:
    """What a merge of local folders wrote into `out`. folders: by their names in the expression.

    memory_bytes: what the process may take for it, as far as that is known beforehand.

    Raises Misused for names without a folder, and what `merging.plan.plan` and `merging.engine.run` raise.
    """
    from adapterhub.merging import engine
    from adapterhub.merging.plan import RUNTIME_BYTES, plan

    recipe = parse(expression)
    inputs = {ref: _input(ref, folders) for ref in recipe.references()}
    found = plan(recipe, inputs, as_kind=as_kind, dtype=dtype, memory_bytes=memory_bytes - RUNTIME_BYTES)
    return engine.run(found, out, progress=progress)


def convert(
    source: Path, out: Path, form: str, *, base: Path | None, initial: Path | None, layout: str | None = None
) -> dict[str, Any]:
    """What a conversion of the patch in `source` wrote into `out`, and how exact it is.

    form: a kind that is written (lora, kohya, diffusers, gguf), dense, safetensors, or native.
    Raises Misused for folders that the form has no use for, or lacks, and what `merging.convert` raises.
    """
    if layout is not None:
        return _convert_layout(source, out, form, layout, base, initial)
    if form == "safetensors":
        from adapterhub.merging.pickles import to_safetensors

        if base or initial:
            raise Misused("--to safetensors changes no number: it takes neither --base nor --initial")
        only = None if source.is_dir() else source.name
        done = to_safetensors(LocalFolder(source if source.is_dir() else source.resolve().parent), out, only=only)
        files = [{"from": pickle, "to": made, "tensors": count} for pickle, made, count in done.files]
        return {"to": form, "files": files, "left_out": list(done.left_out)}
    if form == "native":
        return _convert_pickled_delta(source, out, takes_no=base or initial)
    from adapterhub.merging import convert as conversions
    from adapterhub.merging.quantised import dequantised

    if form not in forms():
        known = ", ".join((*forms(), "safetensors", "native"))
        raise Misused(f"--to {form}: one of {known} is expected")
    if not source.is_dir():
        raise Misused(f"{source}: name the patch's folder; --to safetensors and --to native alone take a file")
    here = None if base is None else dequantised(Checkpoint.open(LocalFolder(base), name=str(base)))
    patch = conversions.read_patch(LocalFolder(source), "", here, LocalFolder(initial) if initial else None)
    conversions.check_form(patch, form)
    if form != DENSE:
        return conversions.to_kind(patch, out, form, here, patch.facts.base.name or str(base or "")).as_json()
    if here is None:
        raise Misused("--to dense: a dense patch says what is added to one base; name it with --base FOLDER")
    return conversions.to_dense(patch, out, here).as_json()


def _convert_layout(
    source: Path, out: Path, form: str, layout: str, base: Path | None, initial: Path | None
) -> dict[str, Any]:
    """What became of a LoRA whose projections were fused or split."""
    from adapterhub.merging import convert as conversions
    from adapterhub.merging.fused import LAYOUTS, relaid

    if layout not in LAYOUTS or form != "lora" or initial is not None:
        raise Misused(f"--layout {layout}: one of {' or '.join(LAYOUTS)}, with --to lora and --base alone")
    if base is None:
        raise Misused("--layout: how fused rows lie is told by the base that has them; name it with --base FOLDER")
    patch = conversions.read_patch(LocalFolder(source), "", None)
    found = relaid(patch, "fused" if layout == "fused" else "split", Checkpoint.open(LocalFolder(base), name=str(base)))
    return conversions.to_kind(found, out, form, None, patch.facts.base.name or str(base)).as_json()


def graft(source: Path, out: Path, *, base: Path | None, tuned: Path, said: Path | None) -> dict[str, Any]:
    """What the pickled logits of a graft mask became, given both models and what the pickle leaves unsaid.

    Raises Misused for what is missing, and what `merging.grafts` raises.
    """
    from adapterhub.merging import grafts

    if base is None or said is None or source.is_dir():
        raise Misused("--tuned: a graft mask is one file, and takes --base FOLDER and --graft FILE besides")
    described = grafts.read_graft(LocalFolder(said.resolve().parent), said.name)
    before, after = (Checkpoint.open(LocalFolder(one), name=str(one)) for one in (base, tuned))
    terms = grafts.to_native(LocalFolder(source.resolve().parent), source.name, described, before, after, out)
    return {"from": "graft", "to": "native", "terms": dict(terms)}


def reft(source: Path, out: Path, *, base: Path | None, positions: str) -> dict[str, Any]:
    """What pyreft's folder became. Raises Misused without a base, and what `merging.pyreft` raises."""
    from adapterhub.merging import pyreft

    if base is None or not source.is_dir():
        raise Misused("--positions: pyreft's patch is a folder, and takes --base FOLDER besides")
    here = Checkpoint.open(LocalFolder(base), name=str(base))
    modules = pyreft.to_native(LocalFolder(source), here, positions, out)
    return {"from": "pyreft", "to": "native", "terms": dict.fromkeys(modules, "reft")}


def _convert_pickled_delta(source: Path, out: Path, *, takes_no: Path | None) -> dict[str, Any]:
    """What the one delta of a folder, or that file, became."""
    from adapterhub.merging.pickled_deltas import to_native

    if takes_no:
        raise Misused("--to native takes neither --base nor --initial")
    folder = LocalFolder(source if source.is_dir() else source.resolve().parent)
    found = [source.name]
    if source.is_dir():
        pickles = [name for name in folder.names() if is_pickle(name)]
        found = pickles or [name for name in folder.names() if name.endswith(".safetensors")]
    if len(found) != 1:
        raise Misused(f"{source}: holds {len(found)} files of tensors; name the one that holds the delta")
    name, terms = to_native(folder, found[0], out)
    return {"from": name, "to": "native", "terms": dict(terms)}


def named_folders(pairs: Sequence[str]) -> dict[str, Path]:
    """Folders by name, from texts "NAME=FOLDER". Raises Misused, Missing."""
    found = {}
    for pair in pairs:
        name, sign, folder = pair.partition("=")
        if not (name and sign and folder):
            raise Misused(f"--input {pair!r}: write NAME=FOLDER")
        if not Path(folder).is_dir():
            raise Missing(f"--input {pair!r}: {folder} is no folder")
        found[name] = Path(folder)
    return found


def _input(ref: Ref, folders: Mapping[str, Path]) -> Input:
    if str(ref) not in folders:
        raise Misused(f"{ref}: say which folder that is, with --input {ref}=FOLDER")
    root = folders[str(ref)]
    folder = LocalFolder(root)
    here = [facts for facts in patches.inspect(folder) if facts.path == ref.path]
    return Input(str(ref), folder, ref.path, _sound(here, root).kind)


def _sound(found: Sequence[Facts], root: Path) -> Facts:
    if not found:
        raise InvalidPatch(f"{root}: no patch and no model that is known lies here")
    return found[0]
