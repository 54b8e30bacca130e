"""docs/compatibility.md: what stands there is made by running the client, and every method of the client is there."""

import inspect
import json

from huggingface_hub import HfApi

from tests.clients.areas import ELSEWHERE, OTHER, OWN, REASONS, REFUSED
from tests.clients.compatibility import PAGE, page, read
from tests.clients.conftest import Run

MODULE = "tests.clients.scenarios_compatibility"


def test_what_is_not_kept_here_is_refused(run_scenario: Run) -> None:
    run_scenario("refused_calls", module=MODULE)


def test_the_rest_of_the_methods_work(run_scenario: Run, repo_id: str) -> None:
    run_scenario("small_calls", repo_id, module=MODULE)


def test_every_method_of_the_client_has_its_area() -> None:
    known = [name for areas in (OWN, OTHER) for methods in areas.values() for name in methods]
    assert len(known) == len(set(known))
    public = {name for name, method in inspect.getmembers(HfApi) if not name.startswith("_") and callable(method)}
    assert public - set(known) == set()
    assert set(known) >= set(REFUSED) | ELSEWHERE
    assert set(REASONS) == set(OTHER)


def test_the_page_tells_of_every_method_of_the_client() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    told = {cells[0].strip("| `") for cells in rows}
    assert told == {name for areas in (OWN, OTHER) for methods in areas.values() for name in methods}


def test_a_method_that_no_longer_works_changes_the_page() -> None:
    def lines(error: str | None) -> list[str]:
        told = {"method": "whoami", "test": "tests/clients/test_a.py::test_b[x]", "direct": True, "error": error}
        return [json.dumps({"client": "2.4.0", **one}) for one in ({"methods": ["whoami"]}, told)]

    before = page(read(lines(None)), "")
    assert "| `whoami` | works | `test_a.py::test_b` |" in before
    assert page(read(lines(None)), before) == before
    assert "| Users, organisations and tokens | 1 of 1 |" in before
    assert "| `whoami` | not yet |  |" in page(read(lines("HfHubHTTPError: gone")), before)
