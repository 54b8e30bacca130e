import json

import pytest
import torch

from adapterhub.merging.analysis import analyses
from adapterhub.merging.analysis.norms import layer_norms
from adapterhub.merging.analysis.spectra import spectra
from adapterhub.merging.patch import Patch
from tests.merging.build import checkpoint, patch, random, site_term

BASE = checkpoint(a=random(8, 6), b=random(5, 5, seed=1), c=random(4, seed=2))


def mixed() -> tuple[Patch, dict[str, torch.Tensor]]:
    """A patch with several sorts of terms, and its delta at each site in float64."""
    A, B, value = random(2, 6, seed=3), random(8, 2, seed=4), random(4, seed=5)
    val, idx = random(2, seed=6), torch.tensor([3, 20])
    terms = [
        site_term("a", "lowrank", 2.0, A=A, B=B),
        site_term("a", "lowrank", -1.0, A=A[:1], B=B[:, :1]),
        site_term("b", "sparse", 0.5, val=val, idx=idx),
        site_term("b", "dense", delta=random(5, 5, seed=7)),
        site_term("c", "replace", value=value),
    ]
    sparse = torch.zeros(25).double()
    sparse[idx] = 0.5 * val.double()
    return patch(*terms), {
        "a": 2.0 * B.double() @ A.double() - B[:, :1].double() @ A[:1].double(),
        "b": sparse.view(5, 5) + random(5, 5, seed=7).double(),
        "c": value.double() - random(4, seed=2).double(),
    }


def test_norms_are_those_of_the_deltas() -> None:
    made, deltas = mixed()
    rows = {row["site"]: row for row in layer_norms(made, BASE)}
    assert list(rows) == ["a", "b", "c"]
    for site, delta in deltas.items():
        assert rows[site]["norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
    assert rows["a"]["relative"] == pytest.approx(float(deltas["a"].norm() / random(8, 6).double().norm()), rel=1e-5)


def test_without_a_base_low_rank_norms_are_still_exact_and_others_say_nothing() -> None:
    made, deltas = mixed()
    rows = {row["site"]: row for row in layer_norms(made)}
    assert rows["a"]["norm"] == pytest.approx(float(deltas["a"].norm()), rel=1e-5)
    assert rows["c"] == {"site": "c", "norm": None, "relative": None}


def test_an_output_tied_to_its_embedding_is_measured_against_it() -> None:
    term = site_term("lm_head.weight", "lowrank", A=random(1, 6), B=random(8, 1))
    tied = type(term)(term.site, term.term, term.fields, options={"tied_source": "a"})
    (row,) = layer_norms(patch(tied), BASE)
    assert row["relative"] is not None


def test_spectra_are_those_of_the_summed_factors() -> None:
    made, deltas = mixed()
    (row,) = spectra(made)
    assert row["site"] == "a"
    assert row["rank"] == 3
    expected = torch.linalg.svdvals(deltas["a"])[:3]
    torch.testing.assert_close(torch.tensor(row["singular_values"]), expected, rtol=1e-5, atol=1e-5, check_dtype=False)
    assert 1.0 < row["effective_rank"] <= 2.0


def test_k_equal_directions_have_effective_rank_k() -> None:
    (row,) = spectra(patch(site_term("a", "lowrank", A=torch.eye(3, 6), B=torch.eye(8, 3))))
    assert row["effective_rank"] == pytest.approx(3.0)


@pytest.mark.parametrize("name", sorted(analyses()))
def test_every_analysis_gives_rows_of_json_sorted_by_site(name: str) -> None:
    made, _ = mixed()
    spec = analyses()[name]
    rows = spec.function(made, BASE)
    assert [row["site"] for row in rows] == sorted(row["site"] for row in rows)
    json.dumps(rows, allow_nan=False)
    assert spec.source
