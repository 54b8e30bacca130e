"""Which folders are pyreft's, and which of those become a reft patch: by names and configuration alone.

Source: stanfordnlp/pyvene `models/intervenable_base.py`, save; `models/configuration_intervenable_model.py`.
"""

import re

from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import Folder, join, read_json

CONFIGS = ("reft_config.json", "config.json")
FILE = re.compile(r"intkey_layer[_.](\d+)[_.]comp[_.]([a-z_]+?)[_.]unit[_.]pos[_.]nunit[_.]1#(\d+)\.bin")


def config_of(folder: Folder, path: str) -> str | None:
    """The name of the configuration that makes a folder pyreft's, None where there is none."""
    for name in CONFIGS:
        if join(path, name) in folder.names():
            try:
                said = read_json(folder, join(path, name))
            except InvalidPatch:
                continue
            if "representations" in said and "intervention_types" in said:
                return join(path, name)
    return None


def files_of(folder: Folder, path: str) -> tuple[str, ...]:
    """The pickled interventions that lie in `path`."""
    inside = [name for name in folder.names() if name.rpartition("/")[0] == path]
    return tuple(name for name in inside if name.rpartition("/")[2].startswith("intkey_") and name.endswith(".bin"))


def problem_of(folder: Folder, config: str, files: tuple[str, ...]) -> str | None:
    """Why it is nothing that `to_native` makes a patch of, by names and configuration alone; else None."""
    if not files:
        return f"{config}: no intkey_*.bin lies beside it"
    said = read_json(folder, config)["intervention_types"]
    types = said if isinstance(said, list) else [said]
    other = next((str(one) for one in types if "LoreftIntervention" not in str(one)), None)
    if other is not None:
        return f"{config}: its interventions are {other[:120]}; only LoreftIntervention becomes a reft patch"
    if len(types) != len(files):
        return f"{config}: lists {len(types)} interventions, and {len(files)} files lie beside it"
    for name in files:
        matched = FILE.fullmatch(name.rpartition("/")[2])
        if matched is None or matched[2] != "block_output" or matched[3] != "0":
            return f"{name}: one intervention on the output of each block, at one group of positions, is read here"
    return None
