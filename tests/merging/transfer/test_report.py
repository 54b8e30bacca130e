import json

import pytest
import torch

from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.patch import Patch, SiteTerm
from adapterhub.merging.transfer.report import Report, portability
from tests.merging.build import checkpoint, handle, patch, random, site_term

N = 64


def base(**changed: torch.Tensor) -> Checkpoint:
    tensors = {"a": random(N, N), "b": random(N, N, seed=1), "head": random(N, 10, seed=2), **changed}
    return checkpoint(**tensors)


def lora(scale: float = 0.1) -> Patch:
    return patch(
        site_term("a", "lowrank", scale, A=random(4, N, seed=3), B=random(N, 4, seed=4)),
        site_term("b", "lowrank", scale, A=random(4, N, seed=5), B=random(N, 4, seed=6)),
    )


def delta(scale: float = 0.1) -> torch.Tensor:
    return scale * random(N, 4, seed=4) @ random(4, N, seed=3)


def report(**changed: torch.Tensor) -> Report:
    found = portability(lora(), base(), base(**changed))
    json.dumps(found.as_json(), allow_nan=False)
    return found


def test_equal_bases_are_identical() -> None:
    found = report()
    assert found.verdict == "identical"
    assert found.drift == 0.0
    assert {row.drift for row in found.sites} == {0.0}


def test_a_change_elsewhere_is_likely_and_said() -> None:
    found = report(head=random(N, 10, seed=9))
    assert found.verdict == "likely"
    assert "others are not" in found.sentence


def test_small_drift_is_likely() -> None:
    found = report(a=random(N, N) + 0.01 * random(N, N, seed=9))
    assert found.verdict == "likely"
    assert found.drift == pytest.approx(0.01 / 2**0.5, rel=0.1)


def test_noise_passes_the_patch_by_even_when_it_is_large() -> None:
    found = report(a=random(N, N) + 0.2 * random(N, N, seed=9), b=random(N, N, seed=1) + 0.2 * random(N, N, seed=10))
    (row, _) = found.sites
    assert row.drift == pytest.approx(0.2, rel=0.1)
    assert row.overlap_above_chance == pytest.approx(0.0, abs=0.1)
    assert found.verdict == "likely"
    assert row.drift_to_patch == pytest.approx(float(0.2 * random(N, N, seed=9).norm() / delta().norm()), rel=1e-4)


def test_drift_along_the_patchs_directions_is_doubtful() -> None:
    along = random(N, 4, seed=4) @ random(4, N, seed=11)
    found = report(
        a=random(N, N) + 0.2 * along, b=random(N, N, seed=1) + 0.2 * random(N, 4, seed=6) @ random(4, N, seed=12)
    )
    assert found.verdict == "doubtful"
    assert found.structured_drift is not None
    assert found.structured_drift > 1.0
    assert found.sites[0].overlap == pytest.approx(1.0)


def test_unrelated_bases_are_doubtful() -> None:
    found = report(a=random(N, N, seed=20), b=random(N, N, seed=21))
    assert found.verdict == "doubtful"
    assert "unrelated" in found.sentence


def test_a_base_in_another_number_format_is_likely() -> None:
    cast = {name: tensor.bfloat16() for name, tensor in (("a", random(N, N)), ("b", random(N, N, seed=1)))}
    found = report(**cast)
    assert found.verdict == "likely"
    assert "number format" in found.sentence
    assert found.structure.recast == 2


def test_a_base_that_holds_the_patch_already_is_refused() -> None:
    second = 0.1 * random(N, 4, seed=6) @ random(4, N, seed=5)
    found = report(a=random(N, N) + delta(), b=random(N, N, seed=1) + second)
    assert found.verdict == "refused"
    assert "holds the patch already" in found.sentence


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"a": random(N, N + 1)}, "a is (64, 65) in the new base, (64, 64) in the old one"),
        ({"a": torch.ones(N, N, dtype=torch.int8)}, "a is quantised"),
    ],
)
def test_a_site_that_does_not_fit_is_refused(changed: dict[str, torch.Tensor], said: str) -> None:
    found = report(**changed)
    assert found.verdict == "refused"
    assert said in found.sentence


def test_a_missing_site_is_refused() -> None:
    found = portability(lora(), base(), checkpoint(b=random(N, N)))
    assert found.verdict == "refused"
    assert "a is not in the new base" in found.sentence
    assert found.as_json()["structure"]["missing"] == {"count": 2, "names": ["a", "head"]}


def test_without_the_source_base_only_structure_is_judged() -> None:
    found = portability(lora(), None, base())
    assert found.verdict == "doubtful"
    assert found.sites == ()
    assert portability(lora(), None, checkpoint(b=random(N, N))).verdict == "refused"


def test_a_delta_below_the_new_bases_last_digit_is_warned_of() -> None:
    cast = {"a": random(N, N).bfloat16(), "b": random(N, N, seed=1).bfloat16(), "head": random(N, 10, seed=2)}
    found = portability(lora(1e-4), base(), checkpoint(**cast))
    assert "below half the base's last digit" in found.sentence


@pytest.mark.parametrize("kind", ["sparse", "mask", "dense", "replace"])
def test_every_kind_of_term_is_measured(kind: str) -> None:
    fields = {
        "sparse": {"val": random(3, seed=3), "idx": torch.tensor([1, 70, 900])},
        "mask": {"bits": torch.full((N * N // 8,), 5, dtype=torch.uint8), "delta": random(N, N, seed=3)},
        "dense": {"delta": random(N, N, seed=3)},
        "replace": {"value": random(N, N, seed=3)},
    }[kind]
    made = patch(site_term("a", kind, **fields))
    found = portability(made, base(), base(a=random(N, N) + 0.1 * random(N, N, seed=9)))
    (row,) = found.sites
    assert row.drift == pytest.approx(0.1, rel=0.1)
    assert row.drift_to_patch is not None
    assert row.overlap is not None


@pytest.mark.parametrize("shape", [(5,), (1, 1), (1, 4), (4, 1), (0, 3)])
def test_sites_of_any_shape_are_measured(shape: tuple[int, ...]) -> None:
    made = patch(site_term("a", "dense", delta=random(*shape, seed=3)))
    before, after = checkpoint(a=random(*shape)), checkpoint(a=random(*shape) * 1.01)
    json.dumps(portability(made, before, after).as_json(), allow_nan=False)


def reinitialised_head() -> SiteTerm:
    return SiteTerm("head", "replace", {"value": handle(random(N, 10, seed=8))}, options={"reinitialised": True})


def test_a_head_that_was_drawn_anew_is_kept_whole_and_not_measured() -> None:
    both = patch(*lora().terms, reinitialised_head())
    found = portability(both, base(), base(head=random(N, 10, seed=9)))
    assert [row.site for row in found.sites] == ["a", "b"]
    assert found.verdict == "likely"
    assert "1 parameters, head first, were drawn anew" in found.sentence


def test_a_patch_of_nothing_but_drawn_values_is_doubtful() -> None:
    found = portability(patch(reinitialised_head()), base(), base(head=random(N, 10, seed=9)))
    assert (found.verdict, found.sites) == ("doubtful", ())


def test_a_drawn_head_that_the_new_base_has_in_another_shape_is_refused() -> None:
    found = portability(patch(reinitialised_head()), base(), base(head=random(N, 3)))
    assert found.verdict == "refused"
    assert "head is (64, 3) in the new base, (64, 10) in the old one" in found.sentence


def test_a_new_head_beside_the_old_base_replaces_the_one_that_the_new_base_has() -> None:
    """peft's modules_to_save of a classifier, on a base whose checkpoint came without one."""
    head = SiteTerm("head", "replace", {"value": handle(random(N, 10, seed=8))})
    without = checkpoint(a=random(N, N), b=random(N, N, seed=1))
    found = portability(patch(*lora().terms, head), without, base())
    assert found.verdict == "likely"
    assert [row.site for row in found.sites] == ["a", "b"]
