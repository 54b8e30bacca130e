"""pyreft's folders of pickled interventions as native reft patches, on the user's own machine.

One `intkey_<layer ... #0>.bin` a layer: weight (r, d), bias (r,) and rotate_layer (d, r), so that R is its transpose.
`config.json` (older: `reft_config.json`) lists `intervention_types` and `representations`. At which positions they act
is told to pyreft with each call and stored nowhere: "all", or "f<n>+l<n>" for so many at the prompt's ends.

Source: stanfordnlp/pyreft `interventions.py`, LoreftIntervention; stanfordnlp/pyvene `intervenable_base.py`, save.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from adapterhub.merging import pickles
from adapterhub.merging.encodings import Array, as_floats
from adapterhub.merging.errors import InvalidParameter, InvalidPatch, UnknownSite
from adapterhub.merging.folders import file_digest
from adapterhub.merging.native import MANIFEST, WEIGHTS
from adapterhub.merging.native_runtime import write_runtime
from adapterhub.merging.pyreft_names import FILE, config_of, files_of, problem_of
from adapterhub.merging.results import ResultFolder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
    from adapterhub.merging.folders import Folder

_POSITIONS = re.compile(r"f(\d{1,4})\+l(\d{1,4})")


def to_native(folder: Folder, base: Checkpoint, positions: str, out: Path) -> list[str]:
    """Write the folder's patch into `out` and give the modules it acts on.

    Raises InvalidPatch, InvalidParameter for positions of another form, UnknownSite, FileExistsError.
    """
    options = _options(positions)
    config, files = config_of(folder, ""), files_of(folder, "")
    problem = "no configuration with representations lies here" if config is None else problem_of(folder, config, files)
    if problem is not None:
        raise InvalidPatch(problem)
    modules = {}
    for name in files:
        matched = FILE.fullmatch(name)
        assert matched is not None  # else `problem_of` had said so
        with pickles.opened(folder, name) as (tensors, _, _):
            modules[_block(base, int(matched[1]))] = _fields(name, tensors)
    digests = {name: folder.digest(name) for name in files}
    with ResultFolder(out) as result:
        provenance: dict[str, Any] = {"source_format": "pyreft", "source_files": digests, "converter": "adapterhub"}
        write_runtime(
            result.path, "reft", modules=modules, options=options, base={"repo_id": base.name}, provenance=provenance
        )
        for file in (MANIFEST, WEIGHTS):
            result.add(file, (result.path / file).stat().st_size, file_digest(result.path / file))
        result.publish()
    return sorted(modules)


def _options(positions: str) -> dict[str, Any]:
    if positions == "all":
        return {"positions": "all"}
    matched = _POSITIONS.fullmatch(positions)
    if matched is None:
        raise InvalidParameter(f"positions {positions[:80]!r}: all, or f<n>+l<n> as in f7+l7, is expected")
    return {"positions": "ends", "first": int(matched[1]), "last": int(matched[2])}


def _block(base: Checkpoint, layer: int) -> str:
    """The module path of a block, by the base's own names. Raises UnknownSite."""
    inside = re.compile(rf"((?:[a-z_]+\.)*(?:layers|layer|h|blocks)\.{layer})\.")
    found = sorted({matched[1] for name in base.tensors if (matched := inside.match(name))})
    if len(found) != 1:
        raise UnknownSite(f"block {layer}", base.name)
    return found[0]


def _fields(file: str, tensors: Mapping[str, TensorHandle]) -> dict[str, Array]:
    shapes = {name: one.shape for name, one in tensors.items()}
    weight = shapes.get("weight", ())
    if len(weight) != 2 or shapes != {"weight": weight, "bias": weight[:1], "rotate_layer": weight[::-1]}:
        raise InvalidPatch(f"{file}: holds {shapes}; weight (r, d), bias (r,) and rotate_layer (d, r) are expected")
    W, b, rotation = (as_floats(tensors[name]).astype(np.float32) for name in ("weight", "bias", "rotate_layer"))
    return {"R": np.ascontiguousarray(rotation.T), "W": W, "b": b}
