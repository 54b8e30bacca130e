"""Tensors that variants have in common are held, and counted, once."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adapterhub.hub.errors import Overloaded
from adapterhub.hub.serving.protocol import VariantSpec
from adapterhub.hub.serving.resident import Variant
from adapterhub.hub.serving.residents import Lease, Residents
from adapterhub.hub.serving.sharing import Shelf
from tests.hub.serving import models

A_TOKEN = 2 * 2 * 2 * 8 * 4
"""Bytes of keys and values of the tiny Llama: layers, heads, width, float32."""


def test_equal_is_bit_for_bit() -> None:
    shelf = Shelf()
    zero, nan = torch.zeros(3), torch.full((3,), float("nan"))
    shelf.put("a", {"w": zero, "v": nan})
    same = shelf.put("b", {"w": zero.clone(), "v": nan.clone()})
    assert same.tensors["w"] is zero
    assert same.tensors["v"] is nan
    assert same.added_bytes == 0
    for other in (-zero, zero.view(3, 1), zero.to(torch.float64), torch.zeros(4)):
        assert shelf.put("c", {"w": other}).tensors["w"] is other
    assert shelf.put("d", {"u": zero.clone()}).added_bytes == zero.nbytes  # of another name


def test_samples_alone_make_nothing_equal() -> None:
    shelf = Shelf()
    one, other = torch.zeros(1000), torch.zeros(1000)
    other[7] = 1.0  # between the elements that are sampled
    shelf.put("a", {"w": one})
    assert shelf.put("b", {"w": other}).tensors["w"] is other


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.lists(st.integers(0, 3), min_size=4, max_size=4))))
def test_what_is_counted_is_what_is_held(course: list[tuple[bool, int, list[int]]]) -> None:
    """Variants come and go; `counted` follows what the shelf says, `held` are the distinct tensors of those there."""
    shelf, holds, counted = Shelf(), {}, dict[str, int]()
    for comes, number, values in course:
        vid = str(number)
        if comes and vid not in holds:
            holds[vid] = shelf.put(vid, {f"w{place}": torch.full((5,), value) for place, value in enumerate(values)})
            counted[vid] = holds[vid].added_bytes
        elif not comes and vid in holds:
            left = shelf.take(holds.pop(vid))
            del counted[vid]
            for other, size_bytes in left.items():
                counted[other] += size_bytes
        held = {id(tensor): tensor.nbytes for hold in holds.values() for tensor in hold.tensors.values()}
        assert sum(counted.values()) == sum(held.values())


@pytest.fixture
def layered(tmp_path: Path) -> dict[str, VariantSpec]:
    """`one` changes v_proj and q_proj, `two` o_proj and down_proj."""
    base = models.llama(tmp_path / "base")
    models.lora(base, tmp_path / "one", seed=1)
    models.lora(base, tmp_path / "two", seed=2, targets=("o_proj", "down_proj"))
    source = models.source("demo/base", base)
    one, two = (models.source(f"demo/{name}", tmp_path / name, "lora") for name in ("one", "two"))
    return {
        "one": models.spec("demo/base + demo/one", source, one),
        "both": models.spec("demo/base + demo/one + demo/two", source, one, two),
    }


def merged(lease: Lease) -> dict[str, Tensor]:
    assert isinstance(lease.variant, Variant)
    return dict(lease.variant.tensors)


def test_variants_share_what_they_have_in_common(layered: dict[str, VariantSpec]) -> None:
    residents = Residents(torch.device("cpu"), 1 << 30)
    one = residents.lease(layered["one"])
    base_bytes = one.base.size_bytes
    alone = residents.state()["used_bytes"] - base_bytes
    both = residents.lease(layered["both"])
    tensors, more = merged(one), merged(both)
    assert tensors.keys() < more.keys()
    assert all(more[name] is tensor for name, tensor in tensors.items())
    of_two = sum(tensor.nbytes for name, tensor in more.items() if name not in tensors)
    assert alone == sum(tensor.nbytes for tensor in tensors.values())
    assert residents.state()["used_bytes"] == base_bytes + alone + of_two


def test_who_stays_answers_for_what_was_shared(layered: dict[str, VariantSpec]) -> None:
    residents = Residents(torch.device("cpu"), 1 << 20)
    first, second = residents.lease(layered["one"]), residents.lease(layered["both"])
    more, used = merged(second), residents.state()["used_bytes"]
    assert used == first.base.size_bytes + sum(tensor.nbytes for tensor in more.values())
    first.release()
    with pytest.raises(Overloaded):  # which lets the first variant go
        second.room.need(512, rows=((1 << 20) - used) // (512 * A_TOKEN) + 1)
    state = residents.state()
    assert [one["digest"] for one in state["resident"] if one["kind"] == "variant"] == [layered["both"].vid]
    assert state["used_bytes"] == used
    again = residents.lease(layered["one"])
    assert all(more[name] is tensor for name, tensor in merged(again).items())
    assert residents.state()["used_bytes"] == used
