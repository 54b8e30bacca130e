"""The API's own page at /docs, with the assets that ship in swagger-ui-bundle: nothing is loaded from elsewhere."""

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

router = APIRouter(include_in_schema=False)

_ASSETS = "/docs/assets"


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The page on which every route of our own can be read and tried."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="adapterhub API",
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{_ASSETS}/favicon-32x32.png",
    )


def mount_assets(app: FastAPI) -> None:
    """Serve the page's scripts and styles from the installed package."""
    app.mount(_ASSETS, StaticFiles(directory=str(swagger_ui_path)), name="docs-assets")
