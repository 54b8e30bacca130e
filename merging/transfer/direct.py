"""direct: θ' + Δ, the patch as it is on the new base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.registry import StrategySpec

if TYPE_CHECKING:
    from adapterhub.merging.transfer import Port


def direct(port: Port) -> None:
    """Carry a patch by naming the new base in its metadata; its weights keep every byte.

    Needs no data and no source base, and has no parameters. Exact where the bases are equal; elsewhere it drops
    C = Δ' - Δ, the difference to a patch trained anew on the new base, which the weights alone do not tell.
    Source: PortLLM, arXiv:2410.10870 sec. 3, θ'_i ≈ θ' + Δ_i.
    """
    for name in port.patch.facts.files:
        if name in port.renamed:
            port.result.write(name, port.renamed[name])
        else:
            port.result.copy(port.folder, name, name)


SPEC = StrategySpec(
    name="direct",
    title="Direct",
    summary="The patch as it is, on the new base",
    source="arXiv:2410.10870",
    function=direct,
    laws=frozenset({"identity"}),
)
