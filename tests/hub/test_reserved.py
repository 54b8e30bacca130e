"""No account may have the name of a page or route."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapterhub.hub.app import create_app
from adapterhub.hub.services.names import RESERVED
from adapterhub.hub.settings import Settings


def paths(routes: list[Any]) -> Iterator[str]:
    """Paths of all routes; routers that FastAPI includes lazily are opened."""
    for route in routes:
        router = getattr(route, "original_router", None)
        if router is not None:
            yield from paths(router.routes)
        elif getattr(route, "path", ""):
            yield str(route.path)


def test_the_first_segment_of_every_route_is_reserved(tmp_path: Path) -> None:
    app = create_app(Settings(data=tmp_path, engine="none", workers=0))
    first = {path.split("/")[1] for path in paths(app.routes)}
    assert {"api", "uploads"} <= first
    assert {segment for segment in first if segment and "{" not in segment} <= RESERVED
