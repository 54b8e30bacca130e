"""A GGUF adapter as llama.cpp's own library of the format, gguf-py, reads it. Nothing of this project is imported here.

Written: alpha / r · B @ A in float64 by the tensor of the model, rows as llama.cpp has them. Refused, as by llama.cpp's
loader: another type, a factor without the other, and ranks that differ.
"""

import sys
from pathlib import Path
from typing import Any


def main(file: Path, out: Path) -> None:
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader: Any = GGUFReader(file)
    pairs = {name: field.contents() for name, field in reader.fields.items()}
    assert (pairs["general.type"], pairs["adapter.type"]) == ("adapter", "lora")
    assert pairs["general.architecture"] == "llama"
    tensors = {one.name: torch.from_numpy(one.data.copy()).double() for one in reader.tensors}
    stems = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in tensors}
    deltas = {}
    for stem in stems:
        A, B = tensors.pop(f"{stem}.lora_a"), tensors.pop(f"{stem}.lora_b")
        assert A.shape[0] == B.shape[1]
        deltas[stem] = (pairs["adapter.lora.alpha"] / A.shape[0] * B @ A).contiguous()
    assert not tensors
    save_file(deltas, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
