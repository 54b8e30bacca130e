"""The table of what stacks: whole, true to the registries, and kept by live models."""

from pathlib import Path

import pytest

from adapterhub.merging import patches, runtime, stacking
from adapterhub.merging.errors import NotStackable

DESCRIBED = next(group for group in stacking.GROUPS if group.name == "described")


def test_every_kind_that_runs_or_is_described_has_a_group() -> None:
    grouped = {kind for group in stacking.GROUPS for kind in group.kinds}
    at_run_time = {name for name, kind in patches.kinds().items() if kind.folds == "no"}
    assert at_run_time <= grouped
    assert grouped == DESCRIBED.kinds | set(runtime.runtimes())


def test_no_kind_is_in_two_groups() -> None:
    grouped = [kind for group in stacking.GROUPS for kind in group.kinds]
    assert len(grouped) == len(set(grouped))


@pytest.mark.parametrize("lower", ["lora", "sparse", "replace"])
def test_everything_that_runs_goes_on_top_of_weights(lower: str) -> None:
    for upper in runtime.runtimes():
        stacking.check_stack([lower], upper)
        with pytest.raises(NotStackable, match="folded before anything is attached"):
            stacking.check_stack([upper], lower)


def test_a_refusal_names_both_kinds_and_the_reason() -> None:
    with pytest.raises(NotStackable, match="prefix_tuning does not go on top of prompt_tuning: a prefix comes before"):
        stacking.check_stack(["lora", "prompt_tuning"], "prefix_tuning")


def test_the_page_says_what_the_table_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "stacking.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.count("|") > 5}
    for lower in stacking.GROUPS:
        cells = rows[lower.name].strip("| ").split(" | ")[1:]
        for upper, cell in zip(stacking.GROUPS, cells, strict=True):
            assert cell.startswith("no" if stacking.refusal(lower, upper) else "yes")
