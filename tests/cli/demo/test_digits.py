"""The demo's images: three parts that share nothing, and the alterations that make tasks of them."""

import io

import numpy as np
import pytest
from PIL import Image

from adapterhub.cli.demo import digits
from adapterhub.cli.demo.digits import Digits, Split


@pytest.fixture(scope="module")
def split() -> Split:
    return digits.load()


def test_all_digits_are_in_exactly_one_part(split: Split) -> None:
    assert [len(part.labels) for part in (split.old, split.new, split.test)] == [900, 450, 447]


def test_a_quarter_turn_four_times_is_the_digit_itself(split: Split) -> None:
    turned = split.test
    for _ in range(4):
        turned = turned.as_task("rotated")
    assert np.array_equal(turned.images, split.test.images)


@pytest.mark.parametrize("task", ["mirrored", "inverted"])
def test_mirroring_and_inverting_undo_themselves(split: Split, task: str) -> None:
    assert not np.array_equal(split.test.as_task(task).images, split.test.images)
    assert np.array_equal(split.test.as_task(task).as_task(task).images, split.test.images)


def test_a_png_holds_the_pixels_that_were_trained_on() -> None:
    one = Digits(np.arange(64, dtype=np.uint8).reshape(1, 8, 8) * 4, np.array([3]))
    read = np.asarray(Image.open(io.BytesIO(one.png(0))))
    assert read.shape == (8, 8, 3)
    assert np.array_equal(read[:, :, 1], one.images[0])
