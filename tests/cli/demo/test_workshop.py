"""The demo's processes: works are made in the order their bases allow, and what fails there fails here."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.cli.demo.errors import DemoFailed
from adapterhub.cli.demo.works import Sizes, Work
from adapterhub.cli.demo.workshop import Event, Workshop, _make

pytestmark = pytest.mark.slow

SIZES = Sizes(digits_steps=10, digits_tune_steps=5)


@pytest.fixture(scope="module")
def shop() -> Iterator[Workshop]:
    with Workshop() as shop:
        yield shop


def test_works_are_made_after_their_bases_and_report_every_few_steps(shop: Workshop, tmp_path: Path) -> None:
    events: list[Event] = []
    base = Work("digits", "model", "upright", measure="vision")
    tuned = Work("rotated", "lora", "rotated", "digits", "vision")
    made = shop.make([tuned, base], tmp_path, SIZES, events.append)
    assert list(made) == ["digits", "rotated"]
    assert [event[:3] for event in events] == [("digits", 5, 10), ("digits", 10, 10), ("rotated", 5, 5)]
    assert (tmp_path / "rotated" / "adapter_model.safetensors").exists()


def test_an_error_of_a_work_ends_the_making(shop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="sideways"):
        shop.make([Work("digits", "model", "sideways", measure="vision")], tmp_path, SIZES, lambda _: None)


def test_leaving_by_an_error_stops_what_is_being_trained(tmp_path: Path) -> None:
    class Interrupted(Exception):
        """As Ctrl-C is, without ending the test run."""

    endless = Sizes(digits_steps=10**9)
    with pytest.raises(Interrupted), Workshop() as shop:  # noqa: PT012
        future = shop.call(_make, Work("digits", "model", "upright", measure="vision"), tmp_path, endless)
        while not future.running():
            pass
        raise Interrupted
    assert isinstance(future.exception(timeout=60), DemoFailed)


def test_telling_works_to_the_workshop_loads_no_torch() -> None:
    import subprocess

    code = "import sys, adapterhub.cli.demo.story; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
