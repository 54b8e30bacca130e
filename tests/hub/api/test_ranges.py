import pytest

from adapterhub.hub.api.ranges import parse_range
from adapterhub.hub.errors import InvalidRange


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-3", (0, 4)),
        ("bytes=4-", (4, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-100", (0, 10)),
        ("bytes=5-100", (5, 10)),
        ("bytes=9-9", (9, 10)),
    ],
)
def test_one_range_is_understood_and_cut_to_the_file(header: str, expected: tuple[int, int]) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize(
    "header", [None, "", "bytes=-", "bytes=5-4", "bytes=0-1,3-4", "items=0-3", "bytes=a-b", "bytes=0-" + "9" * 40]
)
def test_what_is_not_one_range_asks_for_the_whole_file(header: str | None) -> None:
    assert parse_range(header, 10) is None


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_past_the_end_is_refused_with_the_size(header: str) -> None:
    with pytest.raises(InvalidRange) as refused:
        parse_range(header, 10)
    assert refused.value.size_bytes == 10


def test_an_empty_file_has_no_range() -> None:
    with pytest.raises(InvalidRange):
        parse_range("bytes=0-", 0)
