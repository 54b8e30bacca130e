"""What the command does with files of this machine, without a server: a thin use of the merging library."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
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
from adapterhub.merging.recipes.canonical import Input, base_of
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Recipe, Sum, total
from adapterhub.merging.runtime import runtimes

if TYPE_CHECKING:
    from adapterhub.cli.client import Client
    from adapterhub.merging.engine import Progress, Result
    from adapterhub.merging.extract import Extracted
    from adapterhub.merging.plan import Plan
    from adapterhub.merging.recipes.nodes import Node, Ref


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


def written(expression: str | None, config: Path | None) -> dict[str, str]:
    """A recipe as a request says it: {"expression": text}, or {"yaml": text} of a file.

    Raises Misused for both or neither, and Missing without the file.
    """
    if (expression is None) == (config is None):
        raise Misused("give an expression, or --config FILE, and not both")
    if config is None:
        return {"expression": expression or ""}
    try:
        return {"yaml": config.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise Missing(f"--config {config}: {error}") from error


def parsed(said: Mapping[str, str]) -> Recipe:
    """The recipe of what `written` gives. A file's names are folders of this machine where such are there.

    Raises what the readers of recipes raise.
    """
    from adapterhub.merging.recipes import yaml

    if "yaml" not in said:
        return parse(said["expression"])
    recipe = yaml.read(said["yaml"])
    here = ((ref, ref.address) for ref in recipe.references() if Path(ref.address).is_dir())
    return replace(recipe, folders=(*here, *recipe.folders))


def merge(
    recipe: Recipe,
    folders: Mapping[str, Path],
    out: Path,
    *,
    as_kind: str | None,
    dtype: str | None,
    heads: str | None = None,
    memory_bytes: int,
    progress: Callable[[Progress], None],
) -> Result:
    """What a merge of local folders wrote into `out`. folders: by their names in the recipe.

    memory_bytes: what the process may take for it, as far as that is known beforehand.

    What a recipe file names is besides the folder of that name, where there is one.
    Raises Misused for names without a folder, and what `merging.plan.plan` and `merging.engine.run` raise.
    """
    from adapterhub.merging import engine

    found = planned(recipe, folders, as_kind=as_kind, dtype=dtype, heads=heads, memory_bytes=memory_bytes)
    return engine.run(found, out, progress=progress)


def planned(
    recipe: Recipe,
    folders: Mapping[str, Path],
    *,
    as_kind: str | None,
    dtype: str | None,
    heads: str | None = None,
    memory_bytes: int,
) -> Plan:
    """The plan of a merge of local folders, by their names in the recipe. Raises as `merge`."""
    from adapterhub.merging.plan import plan

    inputs = inputs_of(recipe.references(), folders, dict(recipe.folders))
    memory_bytes = _for_steps(memory_bytes)
    return plan(recipe, inputs, as_kind=as_kind, dtype=dtype, memory_bytes=memory_bytes, heads=heads)


def _for_steps(memory_bytes: int) -> int:
    """What is left for a merge's steps of what a user lets the process take."""
    from adapterhub.merging.plan import RUNTIME_BYTES

    return memory_bytes - RUNTIME_BYTES


def explain(
    recipe: Recipe, folders: Mapping[str, Path], *, as_kind: str | None, dtype: str | None, memory_bytes: int
) -> dict[str, Any]:
    """What a merge of local folders would do, as the server's explanation has it. Raises as `merge`."""
    from adapterhub.hub.services import licences
    from adapterhub.merging.explain import explained

    found = planned(recipe, folders, as_kind=as_kind, dtype=dtype, memory_bytes=memory_bytes)
    return explained(found) | {
        "digest": found.recipe_digest,
        "canonical": json.loads(found.canonical),
        "licences": licences.join(one.licence for _, one in found.inputs),
    }


def reproduce(
    result: Path, folders: Mapping[str, Path], *, memory_bytes: int, progress: Callable[[Progress], None]
) -> dict[str, Any]:
    """The verdict on a local result made again from local folders, as the server's job has it.

    folders: by names of inputs in its recipe.json, with their commits or without. Raises Missing, Misused, and as
    `merge`; InvalidRecipe.
    """
    from adapterhub.hub.services.recipe_inputs import FILE
    from adapterhub.merging import engine, execution, reproduction
    from adapterhub.merging.plan import plan
    from adapterhub.merging.recipes.rebuilding import rebuilt

    if not (result / FILE).is_file():
        raise Missing(f"{result}: holds no {FILE}, so nobody knows what it was made of")
    found = rebuilt((result / FILE).read_bytes())
    inputs = {
        ref: _input_at(_folder_of(name, folders), ref.path, name)
        for ref, name in zip(found.refs, found.names, strict=True)
    }
    made = plan(
        found.recipe,
        inputs,
        as_kind=found.as_kind,
        dtype=found.dtype,
        memory_bytes=_for_steps(memory_bytes),
    )
    recorded = result / execution.FILE
    said = json.loads(recorded.read_bytes()) if recorded.is_file() else {}
    with TemporaryDirectory(prefix=".adapterhub-reproduce-", dir=result.resolve().parent) as place:
        out = Path(place) / "result"
        engine.run(made, out, progress=progress)
        verdict = reproduction.verdict(out, LocalFolder(result), said)
    return {"folder": str(result), "recipe_digest": made.recipe_digest, **verdict}


def _folder_of(name: str, folders: Mapping[str, Path]) -> Path:
    plain = name.partition("@")[0]
    if name not in folders and plain not in folders:
        raise Misused(f"{name}: say which folder that is, with --input {plain}=FOLDER")
    return folders.get(name) or folders[plain]


def masks(
    expression: str, folders: Mapping[str, Path], out: Path, *, method: str, tall: float, memory_bytes: int
) -> dict[str, Any]:
    """What became of each task whose shared delta and mask were written into `out`.

    Raises Misused for a recipe that is no base plus tasks, FileExistsError, and as `merging.masks.write_masks`.
    """
    from adapterhub.merging import masks as sharing
    from adapterhub.merging.plan import plan
    from adapterhub.merging.results import ResultFolder

    recipe = parse(expression)
    inputs = inputs_of(recipe.references(), folders)
    base = base_of(recipe, inputs)
    tasks: dict[str, Plan] = {}
    for term in recipe.root.terms if isinstance(recipe.root, Sum) else ():
        if term != base:
            one = Recipe(total([base, term]))
            tasks[_task_name(term, tasks)] = plan(one, inputs, memory_bytes=_for_steps(memory_bytes))
    if not tasks:
        raise Misused(f"{expression}: write a base plus the tasks, as base + a + b")
    how = sharing.masking(method, tall=tall)
    with ResultFolder(out) as folder:
        found = sharing.write_masks(tasks, how, folder.path, method)
        folder.write("README.md", sharing.card(expression, method, found, tall).encode())
        folder.publish()
    return {"folder": str(out), "method": method, "tasks": [one.as_json() for one in found]}


def _task_name(term: Node, taken: Collection[str]) -> str:
    """The last part of what a term names first; numbered where that is taken."""
    first = next(iter(Recipe(term).references()))
    name = (first.path or first.name).rpartition("/")[2]
    return name if name not in taken else f"{name}-{len(taken) + 1}"


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


def inputs_of(
    references: Iterable[Ref], folders: Mapping[str, Path], said: Mapping[Ref, str] = MappingProxyType({})
) -> dict[Ref, Input]:
    """What lies in the folder of each name. said: the folders that a recipe file names.

    Raises Misused for a name without a folder, Missing, InvalidPatch.
    """
    return {ref: _input(ref, folders, said.get(ref)) for ref in references}


def _input(ref: Ref, folders: Mapping[str, Path], said: str | None) -> Input:
    ref = replace(ref, layers=None)
    root = folders.get(str(ref)) or folders.get(said or "") or (Path(said).expanduser() if said else None)
    if root is None:
        raise Misused(f"{ref}: say which folder that is, with --input {ref}=FOLDER")
    if not root.is_dir():
        raise Missing(f"{ref}: the recipe file names {said}, and no folder is there; say --input {ref}=FOLDER")
    return _input_at(root, ref.path, str(ref))


def _input_at(root: Path, path: str, name: str) -> Input:
    folder = LocalFolder(root)
    here = [facts for facts in patches.inspect(folder) if facts.path == path]
    return Input(name, folder, path, _sound(here, root).kind, licence=_licence(root))


def _licence(root: Path) -> str | None:
    """What the folder's card declares; None without a card that can be read."""
    from adapterhub.hub.errors import InvalidCard
    from adapterhub.hub.services import cards

    with suppress(OSError, InvalidCard):
        return cards.parse((root / cards.FILE).read_bytes()[: cards.READ_BYTES]).text_of("license")
    return None


def _sound(found: Sequence[Facts], root: Path) -> Facts:
    if not found:
        raise InvalidPatch(f"{root}: no patch and no model that is known lies here")
    return found[0]
