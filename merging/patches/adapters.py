"""adapters: bottleneck adapters and their heads as the library of AdapterHub saves them.

Files: `adapter_config.json` without peft_type, `adapter.safetensors`, and with a head `head_config.json` and
`model_head.safetensors`; `adapters_folder.py` reads them. Houlsby, Pfeiffer, parallel, compacter and invertible ones
run (`runtime/adapters.py`); what the library's other methods save is recognised and said not to.

Source: arXiv:1902.00751, arXiv:2005.00247, arXiv:2110.04366, arXiv:2106.04647; adapters 1.3.0 `methods/modeling.py`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from adapterhub.merging.adapters_folder import (
    BOTTLENECK,
    CONFIG,
    HEAD_WEIGHTS,
    WEIGHTS,
    AdaptersFolder,
    architecture_of,
    digest_of,
    open_adapters,
    read_adapters_config,
    training_base_of,
)
from adapterhub.merging.bottlenecks import check_bottlenecks
from adapterhub.merging.checkpoint import Checkpoint, Folder
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import join
from adapterhub.merging.patch import Facts, Patch, PatchKind
from adapterhub.merging.sites import layers_of, targets_of

_SHOWN = (
    "reduction_factor",
    "non_linearity",
    "mh_adapter",
    "output_adapter",
    "is_parallel",
    "phm_layer",
    "inv_adapter",
)


def recognise(folder: Folder, path: str) -> Facts | None:
    """Facts of the adapter in `path`, from its configurations and headers."""
    whole = read_adapters_config(folder, path)
    if whole is None or architecture_of(whole) == "lora":
        return None
    file = join(path, CONFIG)
    architecture = architecture_of(whole)
    shown = {key: whole["config"].get(key) for key in _SHOWN} if architecture == BOTTLENECK else {}
    detail: dict[str, Any] = {"architecture": architecture, "version": str(whole.get("version"))[:100], **shown}
    facts = Facts(
        kind="adapters",
        reason=f"{file} has no peft_type, and config and version of the library adapters",
        path=path,
        files=(file,),
        effect="runtime",
        base=training_base_of(whole),
        detail=detail,
    )
    try:
        found = open_adapters(folder, path)
        problems = tuple(_problems(found))
    except InvalidPatch as error:
        return _with(facts, problems=(str(error),))
    return _with_tensors(facts, folder, found, problems)


def _with(facts: Facts, **changes: Any) -> Facts:
    return Facts(**{**vars(facts), **changes})


def _with_tensors(facts: Facts, folder: Folder, found: AdaptersFolder, problems: tuple[str, ...]) -> Facts:
    dtypes: Counter[str] = Counter()
    for handle in found.handles:
        dtypes[handle.dtype] += handle.numel
    weights = [join(found.path, WEIGHTS), *([join(found.path, HEAD_WEIGHTS)] if found.head else [])]
    head = {"labels": dict(found.labels), "head": sorted(found.head)} if found.head else {}
    return _with(
        facts,
        files=(*facts.files, *weights),
        targets=targets_of(found.modules),
        layers=layers_of(found.modules),
        parameter_count=sum(dtypes.values()),
        dtypes=dict(dtypes),
        size_bytes=sum(folder.size(one) for one in weights),
        detail={**facts.detail, **head},
        problems=problems,
    )


def _problems(found: AdaptersFolder) -> Iterator[str]:
    file = join(found.path, CONFIG)
    if found.architecture != BOTTLENECK:
        yield f"{file}: architecture {found.architecture!r}: a bottleneck alone is read; save that part by itself"
        return
    if found.others:
        name, adapter = min(found.others), found.whole.get("name")
        yield f"{join(found.path, WEIGHTS)}: tensor {name[:200]} belongs to no bottleneck of {adapter!r}"
    try:
        check_bottlenecks(found)
    except InvalidPatch as error:
        yield str(error)


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """The adapter, without terms. Raises InvalidPatch."""
    facts = recognise(folder, path)
    if facts is None or facts.problems:
        raise InvalidPatch(facts.problems[0] if facts else f"{join(path, CONFIG)}: not of the library adapters")
    return Patch(facts, digest_of(folder, open_adapters(folder, path), "adapters"), ())


SPEC = PatchKind(
    name="adapters",
    title="AdapterHub bottleneck",
    summary="Small two-layer networks after or beside attention and feed-forward, and a head",
    source="arXiv:1902.00751, arXiv:2005.00247, as the library adapters saves them",
    recognise=recognise,
    read=read,
    family="adapters",
    folds="no",
)
