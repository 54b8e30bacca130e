import pytest
import typer

from adapterhub.cli.options import bytes_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GiB", 2 << 30), ("512 MB", 512 * 10**6), ("1.5kib", 1536), ("1000000", 1_000_000), ("7b", 7)],
)
def test_sizes_are_read_with_their_units(text: str, expected: int) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "2 G", "-1GiB", "2TB", "1e9"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="write one as 2GiB"):
        bytes_of(text)
