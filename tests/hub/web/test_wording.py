from datetime import UTC, datetime, timedelta

import pytest

from adapterhub.hub.web.wording import ago, bytes_short, count_short, plain, seconds_short, shorten


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (123_456, "123 kB"), (5 * 10**12, "5.0 TB")],
)
def test_bytes_are_written_in_the_largest_unit(count: int, expected: str) -> None:
    assert bytes_short(count) == expected


def test_counts_and_times_read_as_words() -> None:
    assert count_short(8_400_000) == "8.4M"
    assert ago(datetime.now(UTC) - timedelta(hours=3, minutes=5)) == "3 hours ago"
    assert ago((datetime.now(UTC) - timedelta(days=1)).isoformat()) == "1 day ago"
    assert ago(datetime.now(UTC)) == "just now"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "less than a second"), (59, "59 s"), (90, "1.5 minutes"), (9000, "2.5 hours"), (86_400, "1.0 days")],
)
def test_lengths_of_time_are_written_in_the_largest_unit(seconds: float, expected: str) -> None:
    assert seconds_short(seconds) == expected


def test_values_of_any_shape_become_one_line() -> None:
    assert plain({"q_proj": 8, "dora": False}) == "q_proj 8, dora no"
    assert plain([0.5, "a"]) == "0.5, a"
    assert shorten("abcdefghij", 5) == "ab…ij"
