"""The explorer as people have it, in JupyterLab and in Voila, in a real browser. What it looks like is kept.

Without a Chromium these tests are skipped and say how to get one; with CI_REQUIRE_BROWSER set they fail instead.
"""

import contextlib
import os
import sys

import browsing
import numpy as np
import pytest
from small_report import margins_table

from napo.explorer import widgets

try:
    from playwright.sync_api import expect

    expect.set_options(timeout=1000 * browsing.SECONDS)
except ImportError:  # the fixture `chromium` says so
    expect = None

SCREENSHOTS = browsing.ROOT / "runs" / "screenshots"


@pytest.fixture(scope="module")
def chromium():
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(browsing.browser())
        except browsing.NoBrowser as missing:
            (pytest.fail if os.environ.get("CI_REQUIRE_BROWSER") else pytest.skip)(str(missing))
        yield running


@pytest.fixture
def page(chromium):
    with browsing.page(chromium) as page:
        yield page


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """Address of notebook 00 in JupyterLab."""
    with browsing.lab(tmp_path_factory.mktemp("lab"), "notebooks/00_box_cox.ipynb") as address:
        yield address


@pytest.fixture(scope="module")
def voila(chromium, tmp_path_factory):
    """Address of the explorer where nothing has been run."""
    folder = tmp_path_factory.mktemp("voila")
    with browsing.voila(folder, ["--runs-dir", folder / "none"]) as address:
        yield address


def keep(page, name):
    """A screenshot for people, runs/screenshots/<name>.png."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def by_keyboard(on_page, name, key, before, after):
    """Press a key on a slider: the field, the words and the picture follow."""
    source, pixels = on_page.source(), on_page.pixels()
    expect(on_page.field(name)).to_have_value(before)
    on_page.slider(name).focus()
    on_page.page.keyboard.press(key)
    expect(on_page.field(name)).to_have_value(after)
    expect(on_page.page.locator(".napo-readout")).to_contain_text(f"{widgets.LABELS[name]} = {after}")
    on_page.changed(source)
    now = on_page.pixels()
    assert now.shape == pixels.shape and (np.abs(now - pixels) > 40).any(axis=2).sum() > 20


def typed(on_page, name, text, shown, note):
    """Type a number: it is taken, or clamped and said so."""
    source = on_page.source()
    on_page.field(name).fill(text)
    on_page.page.keyboard.press("Enter")
    expect(on_page.field(name)).to_have_value(shown)
    expect(on_page.page.locator(f".napo-{name}-note")).to_have_text(note)
    on_page.changed(source)


def test_jupyterlab_shows_a_picture_before_anything_has_run(page, lab):
    page.goto(lab)
    published = page.locator(".jp-NotebookPanel img[alt*='as published']")
    published.scroll_into_view_if_needed()
    expect(published).to_be_visible()
    page.wait_for_function("(image) => image.naturalWidth > 800", arg=published.element_handle())
    keep(page, "jupyterlab-before-running")


def test_jupyterlab(page, lab):
    browsing.open_lab(page, lab)
    on_page = browsing.OnPage(page)
    assert browsing.in_kernel(page, "__import__('sys').executable") == repr(sys.executable)
    assert browsing.in_kernel(page, "explorer.knobs['q'].value") == "0.5"
    by_keyboard(on_page, "q", "ArrowRight", "0.5", "0.51")
    assert browsing.in_kernel(page, "explorer.knobs['q'].value, explorer.view.q") == "(0.51, 0.51)"
    by_keyboard(on_page, "beta", "ArrowLeft", "0.1", "0.09")
    typed(on_page, "alpha", "7", "1", "7 is outside 0.01 … 1: set to 1")
    assert browsing.in_kernel(page, "explorer.view.alpha") == "1.0"
    keep(page, "jupyterlab")


def test_voila_on_the_toys_pairs(page, voila):
    page.goto(voila)
    on_page = browsing.OnPage(page)
    by_keyboard(on_page, "flip_rate", "ArrowRight", "0.2", "0.21")
    by_keyboard(on_page, "q", "ArrowUp", "0.5", "0.51")
    typed(on_page, "q", "-3", "0.01", "-3 is outside 0.01 … 1: set to 0.01")
    typed(on_page, "q", "0.7", "0.7", "")
    source = on_page.source()
    on_page.choose("presets", "Figure 3: q = 0.9")
    on_page.changed(source)
    expect(on_page.field("q")).to_have_value("0.9")
    on_page.press("reset")
    expect(on_page.field("q")).to_have_value("0.5")
    expect(on_page.field("flip_rate")).to_have_value("0.2")
    page.wait_for_timeout(500)
    keep(page, "voila")


def test_fields_have_names_that_screen_readers_read(page, voila):
    page.goto(voila)
    browsing.OnPage(page)
    for label in widgets.LABELS.values():
        expect(page.get_by_label(f"{label} =", exact=True)).to_be_visible()


def test_voila_asks_for_its_token(page, voila):
    assert voila.startswith("http://127.0.0.1:")
    page.goto(voila.partition("?")[0])
    assert "/login" in page.url and page.locator("img.napo-image").count() == 0
    assert page.request.get(voila.partition("?")[0] + "api/kernels", max_redirects=0).status in (302, 403)


def test_voila_on_real_margins(page, tmp_path):
    path = tmp_path / "runs/desk/base-0/noise.parquet"
    path.parent.mkdir(parents=True)
    margins_table().to_parquet(path)
    with browsing.voila(tmp_path, ["--runs-dir", tmp_path / "runs"]) as address:
        page.goto(address)
        on_page = browsing.OnPage(page)
        source = on_page.source()
        on_page.choose("presets", "Figure 4: vision bias, α = 0.01")
        on_page.changed(source)
        expect(on_page.field("alpha")).to_have_value("0.01")
        expect(page.locator(".napo-batch select")).to_have_value(widgets.VISION)
        keep(page, "voila-real-margins")
