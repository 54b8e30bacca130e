"""Who a base is: digests of its tensors' values, which no renaming of the repository changes.

A tensor's digest is sha256 over its dtype's safetensors name, a zero byte, its shape as "2,3", a zero byte, and its
bytes, little-endian and contiguous. The root is sha256 over the lines "<name> <digest>\\n", sorted by name. Shards,
metadata and the order of tensors in files do not matter; dtype does.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
from adapterhub.merging.sites import tie_of

ALGORITHM = "sha256-tensor-v1"


@dataclass(frozen=True)
class Fingerprint:
    """root: "sha256:<hex>" over all tensors. parameters: digest by name, of every stored tensor.

    ties: names that share one stored tensor, the stored one first.
    """

    root: str
    parameters: Mapping[str, str]
    ties: tuple[tuple[str, ...], ...] = ()


def fingerprint(checkpoint: Checkpoint) -> Fingerprint:
    """The fingerprint of a checkpoint; reads every byte of its weights once, in the order of names."""
    parameters = parameter_digests(checkpoint)
    lines = "".join(f"{name} {digest}\n" for name, digest in parameters.items())
    tie = tie_of(checkpoint)
    return Fingerprint(
        root="sha256:" + hashlib.sha256(lines.encode()).hexdigest(),
        parameters=parameters,
        ties=((tie.stored, tie.output),) if tie is not None else (),
    )


def parameter_digests(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> Mapping[str, str]:
    """Digests by name, sorted; of the named parameters alone where names are given, absent ones left out."""
    wanted = checkpoint.tensors.keys() if names is None else checkpoint.tensors.keys() & set(names)
    return {name: tensor_digest(checkpoint.tensors[name]) for name in sorted(wanted)}


def tensor_digest(tensor: TensorHandle) -> str:
    """The digest of one tensor's dtype, shape and values, "sha256:<hex>"."""
    shape = ",".join(map(str, tensor.shape))
    digest = hashlib.sha256(f"{tensor.dtype}\0{shape}\0".encode())
    digest.update(tensor.read())
    return "sha256:" + digest.hexdigest()
