"""A sum of patches as one low-rank adapter a module: what the kinds that write LoRAs share, whatever they call it.

A module that one plain LoRA or DoRA alone changes keeps that adapter's factors as they are stored, and its alpha. Of
others A's are stacked and B's side by side, weights and scales in B, so that alpha is the rank. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
from adapterhub.merging.errors import NotRepresentable
from adapterhub.merging.patch import ExportTensor, Patch, SiteTerm
from adapterhub.merging.peft_adapter import reshaped
from adapterhub.merging.sites import is_conv1d, is_input_embedding
from adapterhub.merging.terms import terms

Parts = Sequence[tuple[float, SiteTerm]]


@dataclass(frozen=True)
class Pair:
    """The adapter of one module: alpha / r · B @ A, with A (r, in[, k, k]) and B (out, r[, 1, 1]).

    layer: "linear", "conv1d", "conv" or "embedding". parts: what is joined, (weight, term). stored: A and B as they
    are, {} where they are joined. mag: the magnitudes (out,) of a DoRA, whose factors are stored ones.
    """

    module: str
    layer: str
    r: int
    alpha: float
    shapes: Mapping[str, tuple[int, ...]]
    parts: Parts
    stored: Mapping[str, TensorHandle]
    mag: TensorHandle | None = None

    def tensor(
        self, factor: Literal["A", "B"], name: str, *, unit: float | None = None, rows: Sequence[int] = ()
    ) -> ExportTensor:
        """A or B under this name. unit: what the reader will multiply B @ A by; the scaling, unless it says another.

        rows: the order in which B's are written.
        """
        if factor in self.stored and (factor == "A" or unit in (None, self.alpha / self.r)):
            one = self.stored[factor]
            return ExportTensor(name, one.dtype, self.shapes[factor], factor, (), False, one, tuple(rows))
        parts = tuple((weight / (unit or 1.0), term) for weight, term in self.parts)
        is_transposed = _is_transposed(self.parts[0][1].options)
        return ExportTensor(name, "F32", self.shapes[factor], factor, parts, is_transposed, None, tuple(rows))


def pairs_of(addends: Sequence[tuple[float, Patch]], base: Checkpoint | None) -> list[Pair]:
    """The weighted sum of patches by module, sorted. Raises NotRepresentable for terms without a low-rank form.

    base: what tells which module a native term's parameter belongs to; other terms say it themselves.
    """
    parts: dict[str, list[tuple[float, SiteTerm]]] = {}
    modules: dict[str, str] = {}
    for weight, patch in addends:
        for found in patch.terms:
            term = _with_module(found, base)
            module = _module(term, is_alone=len(addends) == 1 and weight == 1.0)
            if modules.setdefault(term.site, module) != module:
                raise NotRepresentable(f"{term.site}: called {module} and {modules[term.site]} by two adapters")
            parts.setdefault(module, []).append((weight, term))
    return [_pair(module, parts[module]) for module in sorted(parts)]


def copied(name: str, handle: TensorHandle, shape: Sequence[int] | None = None) -> ExportTensor:
    """A tensor that is written as it is, in another shape where one is given."""
    found = handle if shape is None else reshaped(handle, shape)
    return ExportTensor(name, found.dtype, found.shape, "A", (), False, found)


def patterns(pairs: Sequence[Pair]) -> dict[str, Any]:
    """peft's r, lora_alpha, rank_pattern and alpha_pattern: the most common are r and alpha, the others patterns."""
    r, alpha = (_commonest([getattr(one, name) for one in pairs]) for name in ("r", "alpha"))
    return {
        "r": r,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {one.module: one.r for one in pairs if one.r != r},
        "alpha_pattern": {one.module: _whole(one.alpha) for one in pairs if one.alpha != alpha},
    }


def is_dora(pairs: Sequence[Pair]) -> bool:
    """Whether the pairs are DoRAs. Raises NotRepresentable where some are, for configurations that say it of all."""
    plain = [one.module for one in pairs if one.mag is None]
    if plain and len(plain) < len(pairs):
        raise NotRepresentable(f"{plain[0]}: is a LoRA beside DoRAs, and one adapter is either; make a model instead")
    return bool(pairs) and not plain


def _commonest(values: Sequence[Any]) -> Any:
    return max(values, key=values.count) if values else 1


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def _with_module(term: SiteTerm, base: Checkpoint | None) -> SiteTerm:
    """The term with the module and layer that native files leave to the base."""
    module, _, field = term.site.rpartition(".")
    if "module" in term.options or base is None or field != "weight" or term.site not in base.tensors:
        return term
    shape = base.tensors[term.site].shape
    layer = "conv" if len(shape) > 2 else "conv1d" if is_conv1d(module, base) else "linear"
    layer = "embedding" if is_input_embedding(term.site) else layer
    known = {"transpose": bool(term.options.get("transpose")), "shape": list(shape)}
    return replace(term, options={**term.options, **known, "module": module, "layer": layer})


def _module(term: SiteTerm, *, is_alone: bool) -> str:
    is_kept = is_alone and term.term == "dora"
    if terms()[term.term].factors is not None and "module" not in term.options and term.site.endswith(".weight"):
        raise NotRepresentable(
            f"{term.site}: which module it belongs to is the base's to say: name it with --base FOLDER"
        )
    if (terms()[term.term].factors is None and not is_kept) or "module" not in term.options:
        raise NotRepresentable(
            f"{term.site}: a {term.term} term has no exact low-rank form, and a LoRA holds nothing else; make a model "
            "or a dense patch of it instead"
        )
    return str(term.options["module"])


def _pair(module: str, parts: Parts) -> Pair:
    term = parts[0][1]
    options = term.options
    if term.term == "dora" and len(parts) > 1:
        raise NotRepresentable(f"{term.site}: a DoRA and another term; make a model or a dense patch of it instead")
    sizes = [_sizes(one) for _, one in parts]
    out, r, fan_in = sizes[0][0], sum(one[1] for one in sizes), sizes[0][2]
    inner = tuple(options["shape"][1:]) if options["layer"] == "conv" else (fan_in,)
    shapes = {"A": (r, *inner), "B": (out, r, *(1,) * (len(inner) - 1))}
    scaling = float(options["scaling"]) if term.term == "dora" else term.scale
    if _is_plain(parts) and scaling > 0:
        stored = {name: reshaped(term.fields[name], shapes[name]) for name in ("A", "B")}
        alpha = _alpha(scaling, r)
        return Pair(module, options["layer"], r, alpha, shapes, parts, stored, term.fields.get("mag"))
    return Pair(module, options["layer"], r, float(r), shapes, parts, {})


def _is_plain(parts: Parts) -> bool:
    """Whether the parts are one LoRA or DoRA with the factors that a file has, in its orientation."""
    weight, term = parts[0]
    is_whole = len(parts) == 1 and weight == 1.0 and bool(term.options["transpose"]) == _is_transposed(term.options)
    return is_whole and term.term in ("lowrank", "dora") and not term.fields.keys() & {"b", "d"}


def _alpha(scaling: float, r: int) -> float:
    """The alpha whose quotient by r is the scaling: the short number that it was, where that divides back."""
    exact = scaling * r
    short = float(f"{exact:.12g}")
    return short if short / r == scaling else exact


def _sizes(term: SiteTerm) -> tuple[int, int, int]:
    """(out, r, in or in·k·k) of the low-rank form of a term, as peft sees its module."""
    sizes = terms()["lowrank" if term.term == "dora" else term.term].factor_sizes
    assert sizes is not None
    n, r, m = sizes({name: handle.shape for name, handle in term.fields.items()}, term.options)
    return (m, r, n) if _is_transposed(term.options) else (n, r, m)


def _is_transposed(options: Mapping[str, Any]) -> bool:
    """Whether the site stores (in, out): an embedding has a row for each of its inputs, the tokens."""
    return bool(options["transpose"]) or options["layer"] in ("embedding", "conv1d")


def one_layer(pairs: Sequence[Pair], form: str, *layers: str) -> Iterator[Pair]:
    """The pairs, all of layers that a format has. Raises NotRepresentable, naming the first that is none."""
    for pair in pairs:
        if pair.layer not in layers:
            raise NotRepresentable(
                f"{pair.module}: is an adapter of a {pair.layer} layer, for which {form} has no place; leave it out "
                "of the patch, or make a model"
            )
        yield pair
