import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from adapterhub.hub.logging import configure, redact
from adapterhub.hub.settings import Settings

TOKEN = "ah_" + "x1-_" * 10 + "end"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged; the process's own logging comes back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    configure(Settings(log_format="json"), stream)
    yield stream
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_the_bound_request_id(stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("adapterhub.x").info("stored", size_bytes=3)
    (line,) = _lines(stream)
    assert (line["event"], line["request_id"], line["size_bytes"], line["level"]) == ("stored", "r1", 3, "info")


def test_messages_of_libraries_come_out_in_the_same_form(stream: io.StringIO) -> None:
    logging.getLogger("some.library").warning("low on %s", "disk")
    assert _lines(stream)[0]["event"] == "low on disk"


def test_no_token_is_ever_written(stream: io.StringIO) -> None:
    log = structlog.get_logger("adapterhub.x")
    log.info("careless", header=f"Bearer {TOKEN}", url=f"http://h/x?signature={TOKEN}", text=f"token={TOKEN}")
    try:
        raise ValueError(f"bad token {TOKEN}")
    except ValueError:
        log.exception("failed")
    assert TOKEN not in stream.getvalue()
    assert "x1-_x1-_" not in stream.getvalue()
    assert stream.getvalue().count("[redacted]") >= 4


@pytest.mark.parametrize("text", [f"Bearer {TOKEN}", f"Authorization: Basic {TOKEN}", "hf_abcdefghijklmnop", TOKEN])
def test_each_way_to_write_a_credential_is_redacted(text: str) -> None:
    assert "[redacted]" in redact(text)


def test_ordinary_words_stay() -> None:
    assert redact("news: ah_ha, hf_hub/2.4") == "news: ah_ha, hf_hub/2.4"


def test_a_traceback_for_people_shows_no_values_of_variables(stream: io.StringIO) -> None:
    configure(Settings(log_format="console"), stream)
    password = "-".join(["correct", "horse"])
    try:
        raise ValueError(len(password))
    except ValueError:
        structlog.get_logger("adapterhub.x").exception("failed")
    assert "ValueError: 13" in stream.getvalue()
    assert password not in stream.getvalue()
