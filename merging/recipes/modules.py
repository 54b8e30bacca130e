"""Modules of a model in a recipe file: an encoder and a decoder, a vision tower beside a language model.

Each module's merge acts on the tensors whose names hold a part that is the module's, so a file of modules is a sum:
`base + {"encoder.": 1, "*": 0}*ties(a, b) + {"decoder.": 1, "*": 0}*ties(a, b, density=0.5)`.
Source: names of tensors in checkpoints of transformers' T5, Whisper, Qwen2-VL, Qwen3-VL, Gemma 3, Mistral 3 and Llama
4; mergekit 0.1.5 calls their modules so.
"""

from collections.abc import Mapping

from adapterhub.merging.errors import RecipeFileError
from adapterhub.merging.recipes.nodes import Call, Node, Ref, Sum, total, weighted
from adapterhub.merging.recipes.values import ANY, Schedule, schedule

_PARTS = (
    ("multi_modal_projector.", "multi_modal_projector"),
    ("visual.merger.", "multi_modal_projector"),
    ("visual.deepstack_merger_list.", "multi_modal_projector"),
    ("vision_tower.", "vision_tower"),
    ("visual.", "vision_tower"),
    ("vision_model.", "vision_model"),
    ("language_model.", "text_decoder"),
    ("decoder.", "decoder"),
    ("encoder.", "encoder"),
    ("shared.", "shared"),
)
"""Which module has a tensor: that of the first part which is in its name."""

_REST = ("text_decoder", "decoder")
"""The modules that have the tensors which hold none: the head, and all of Qwen2-VL's language model."""


def by_module(base: Ref, nodes: Mapping[str, Node], where: str) -> Node:
    """The sum of merges, each of which says what one module becomes, on their base.

    Raises RecipeFileError for a module that is not known.
    """
    known = {name for _, name in _PARTS}
    unknown = [name for name in nodes if name not in known]
    if unknown:
        raise RecipeFileError(
            f"{where}.{unknown[0]}",
            f"no module that is known; known are {', '.join(sorted(known))}; filters choose others",
        )
    rest = next((name for name in _REST if name in nodes), "")
    changes = ((name, _change(node, base)) for name, node in nodes.items())
    return total([base, *(weighted(1.0, one, [_where(name, rest)]) for name, one in changes if one is not None)])


def base_of(node: Node) -> Ref:
    """The model that the merge of a module starts from."""
    while not isinstance(node, Ref):
        node = node.terms[0] if isinstance(node, Sum) else node.base  # type: ignore[union-attr, assignment]
    return node


def _where(module: str, rest: str) -> Schedule:
    """1 on the tensors of a module, 0 on others. rest: the module of those whose names hold no part."""
    cases = [(part, [float(name == module)]) for part, name in _PARTS]
    found = schedule([*cases, (ANY, [float(module == rest)])])
    assert isinstance(found, Schedule)  # some tensors are the module's and some are not
    return found


def _change(node: Node, base: Ref) -> Node | None:
    """What a merge adds to the base; None where that is nothing. A further full model is its difference from it."""
    if isinstance(node, Call):
        return Call(node.method, None, node.inputs, node.parameters)
    terms = [one for one in (node.terms if isinstance(node, Sum) else (node,)) if one != base]
    return total(terms) if terms else None
