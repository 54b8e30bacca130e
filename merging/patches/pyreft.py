"""pyreft: interventions as pyreft saves them, one pickle a layer: recognised by names, and not opened.

`adapterhub patch convert --to native --positions f7+l7 --base FOLDER` makes a reft patch of them: `merging/pyreft.py`.

Source: arXiv:2404.03592; stanfordnlp/pyvene `models/intervenable_base.py`, save.
"""

from adapterhub.merging.checkpoint import Checkpoint, Folder
from adapterhub.merging.errors import InvalidPatch, NotFoldable
from adapterhub.merging.patch import Facts, Patch, PatchKind
from adapterhub.merging.pyreft_names import config_of, files_of, problem_of

_CURE = (
    "they are pickles, which are not opened here; on your machine `adapterhub patch convert FOLDER OUT --to native "
    "--base BASE --positions f7+l7`, with the positions that it was trained at, makes a patch that runs"
)


def recognise(folder: Folder, path: str) -> Facts | None:
    """Facts of a folder whose configuration has pyvene's `representations` and `intervention_types`."""
    config = config_of(folder, path)
    if config is None:
        return None
    files = files_of(folder, path)
    problem = problem_of(folder, config, files) or f"{files[0]}: {_CURE}"
    return Facts(
        kind="pyreft",
        reason=f"{config} has representations and intervention_types, as pyreft writes them",
        path=path,
        files=(config, *files),
        effect="runtime",
        size_bytes=sum(folder.size(name) for name in files),
        problems=(problem,),
    )


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """Raises NotFoldable, which says what to do, or InvalidPatch where it is none of pyreft's folders."""
    facts = recognise(folder, path)
    if facts is None:
        raise InvalidPatch(f"{path or 'the root folder'}: no configuration of pyreft lies here")
    raise NotFoldable(facts.problems[0])


SPEC = PatchKind(
    name="pyreft",
    title="pyreft",
    summary="Interventions as pyreft pickles them, to be converted first",
    source="arXiv:2404.03592, as pyreft saves it",
    recognise=recognise,
    read=read,
    family="pyreft",
    folds="no",
)
