"""The catalogue as a visitor sees it. Each test shares one server; the group keeps them in one process."""

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import screenshot
from tests.clients.server import Server

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.xdist_group("browser")]


def sign_in(page: Any, catalogue: Server) -> None:
    page.goto("/login")
    page.get_by_label("Token").fill(catalogue.token)
    page.get_by_role("main").get_by_role("button", name="Sign in").click()


def test_a_visitor_searches_and_opens_a_patch(page: Any) -> None:
    page.goto("/")
    screenshot(page, "home")
    page.keyboard.press("/")
    page.keyboard.type("code")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="ann/code", exact=True).click()
    expect(page).to_have_title("ann/code · adapterhub")
    expect(page.get_by_text("tensor by tensor")).to_be_visible()


def test_the_picture_by_layer_shows_measured_norms_once_the_job_is_done(page: Any) -> None:
    for _ in range(60):
        page.goto("/ann/code")
        if page.get_by_text("‖ΔW‖").first.is_visible():
            break
        page.wait_for_timeout(500)
    expect(page.locator("#inside svg rect")).to_have_count(4)
    screenshot(page, "patch")


def test_a_recipe_is_found_read_and_compared(page: Any) -> None:
    page.goto("/")
    page.get_by_role("link", name="Recipes", exact=True).click()
    screenshot(page, "recipes")
    page.get_by_role("link", name="ann/support", exact=True).click()
    expect(page.get_by_text("ties(ann/base; 0.7*ann/code, density=0.5)").first).to_be_visible()
    expect(page.get_by_role("heading", name="Since version 1")).to_be_visible()
    screenshot(page, "recipe")
    page.get_by_role("link", name="1", exact=True).click()
    expect(page.get_by_text("the latest is version 2")).to_be_visible()
    page.get_by_role("link", name="with 2").click()
    expect(page.get_by_role("heading", name="Since version 2")).to_be_visible()


def test_a_merge_shows_its_recipe_and_where_it_is_saved(page: Any) -> None:
    for _ in range(60):
        page.goto("/ann/code")
        if page.get_by_text("ann/merged").first.is_visible():
            break
        page.wait_for_timeout(500)
    page.goto("/ann/merged")
    saved = page.get_by_role("link", name="recipe/ann/support@2")
    expect(saved).to_be_visible()
    screenshot(page, "merge")
    saved.click()
    expect(page).to_have_title("ann/support · recipe · adapterhub")


def test_a_patch_is_merged_by_the_form(page: Any, catalogue: Server) -> None:
    sign_in(page, catalogue)
    page.goto("/ann/code")
    page.get_by_role("link", name="merge it").click()
    page.get_by_label("Weight").first.fill("0.5")
    page.get_by_label("How they are joined").select_option("ties")
    page.get_by_role("button", name="Show its parameters").click()
    page.get_by_label("density").fill("0.5")
    page.get_by_role("textbox", name="Repository").fill("ann/by-form")
    page.get_by_role("button", name="Show the plan").click()
    expect(page.get_by_text("ties(ann/base; 0.5*ann/code, density=0.5)")).to_be_visible()
    screenshot(page, "merge-form")
    page.get_by_role("button", name="Merge", exact=True).click()
    made = page.get_by_role("link", name="ann/by-form")
    expect(made).to_be_visible(timeout=60_000)  # the page of the job looks again by itself
    screenshot(page, "job")
    made.click()
    expect(page).to_have_title("ann/by-form · adapterhub")


def test_the_repository_page_reads_without_scripts(chromium: Any, catalogue: Server) -> None:
    context = chromium.new_context(base_url=catalogue.url, java_script_enabled=False)
    tab = context.new_page()
    tab.goto("/ann/code")
    expect(tab.get_by_text("hf download ann/code")).to_be_visible()
    expect(tab.get_by_role("button", name="Copy")).to_have_count(0)
    context.close()


def test_a_narrow_screen_does_not_scroll_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/", "/patches", "/recipes", "/recipes/ann/support", "/ann/code", "/merge?method=ties", "/help"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path


def test_signing_in_shows_the_name_and_signing_out_hides_it(page: Any, catalogue: Server) -> None:
    sign_in(page, catalogue)
    expect(page.get_by_role("navigation").get_by_role("link", name="ann", exact=True)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()


def test_the_api_page_loads_its_own_assets(page: Any) -> None:
    page.goto("/docs")
    page.get_by_text("/api/merges").first.wait_for()
    screenshot(page, "api")
