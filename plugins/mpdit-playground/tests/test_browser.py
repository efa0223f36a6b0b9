"""The page in a real browser: Playwright drives Debian's chromium. Skipped where one of them is missing."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from subprocess import PIPE

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium", allow_module_level=True)

from mpdit_playground.command import PlaygroundOptions  # noqa: E402
from mpdit_playground.page import Page  # noqa: E402
from mpdit_playground.session import Playground  # noqa: E402
from sample_helpers import spec, write_model  # noqa: E402

from mpdit_core.interop import ExportOptions, export_model  # noqa: E402

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
PATIENCE = 60_000  # milliseconds
FOREVER = "100000"  # steps
OPACITY = "e => { let o = 1; for (; e; e = e.parentElement) o *= getComputedStyle(e).opacity; return o; }"


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    latents = spec().model_copy(update={"folder": "gone"})
    models = tuple(str(write_model(folder / name, seed=i, latents=latents).path) for i, name in enumerate("ab"))
    page = Page(Playground(PlaygroundOptions(models=models, device="cpu", num_steps=3, num_samples=2)))
    yield page.open(host="127.0.0.1", port=None, browser=False)
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, request) -> Iterator:
    """Opens a page as a new visitor; fails where it asks another host for anything."""
    contexts, strangers = [], []

    def open_page(url: str | None = None):
        url = url or request.getfixturevalue("url")
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda r: strangers.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
        page.goto(url)
        page.wait_for_selector("#sample")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert strangers == []


def status(page, text: str) -> str:
    page.wait_for_selector(f"#status .status:has-text('{text}')")
    return page.inner_text("#status")


def sample(page) -> None:
    page.click("#sample")
    status(page, "Finished")


def test_load_and_sample(visit):
    page = visit()
    sample(page)
    assert page.locator("#pictures section").count() == 2
    assert page.locator("#pictures img").count() == 4
    assert page.locator("#pictures button span").all_inner_texts() == ["zero", "one"] * 2
    assert "mpdit sample" in page.inner_text("#command")
    assert page.locator("#details a[download$='.png']").count() == 1


def test_change_class(visit):
    page = visit()
    page.get_by_label("Chosen", exact=True).check()
    box = page.locator("#classes input")
    box.fill("gold")
    page.get_by_role("option", name="goldfish").click()
    box.press("Escape")
    sample(page)
    assert set(page.locator("#pictures button span").all_inner_texts()) == {"goldfish"}
    assert "--classes 5" in page.inner_text("#command")


def test_choose_an_image_and_return_to_a_run(visit):
    page = visit()
    sample(page)
    page.fill("#option-seed input", "5")
    page.click("#sample")
    page.wait_for_selector("#history button >> nth=1")
    page.click("#pictures button[data-pick='1,1']")
    page.wait_for_selector("#details dd:has-text('one (1)')")
    assert "--seed 5" in page.inner_text("#command")
    page.click("#history button >> nth=1")
    status(page, "From the history")
    assert page.input_value("#option-seed input") == "0"
    assert "--seed" not in page.inner_text("#command")


def test_stop(visit):
    page = visit()
    page.fill("#option-num_steps textarea, #option-num_steps input", FOREVER)
    page.click("#sample")
    page.wait_for_selector("#pictures progress")
    page.wait_for_selector("#pictures img")  # on the way
    page.click("#stop")
    status(page, "Stopped")
    page.wait_for_selector("#sample:not([disabled])")


def test_a_second_visitor_waits_and_is_told(visit):
    first, second = visit(), visit()
    first.fill("#option-num_steps textarea, #option-num_steps input", FOREVER)
    first.click("#sample")
    status(first, "Sampling")
    second.click("#sample")
    assert "another visitor" in status(second, "Waiting")
    assert second.locator("#status .status").evaluate(OPACITY) == 1  # Gradio dims what waits
    first.click("#stop")
    status(second, "Finished")
    assert "Stopped" in status(first, "Stopped")


def test_a_closed_page_lets_the_next_visitor_in(visit):
    first, second = visit(), visit()
    first.fill("#option-num_steps textarea, #option-num_steps input", FOREVER)
    first.click("#sample")
    status(first, "Sampling")
    first.close()
    sample(second)


def test_an_error_is_one_message(visit):
    page = visit()
    page.fill("#option-seed input", "-1")
    page.click("#sample")
    page.wait_for_selector("#status .error")
    assert "seed" in page.inner_text("#status")
    page.wait_for_selector("#sample:not([disabled])")
    page.fill("#option-seed input", "1")
    sample(page)


def test_the_chosen_image_comes_into_sight(visit):
    page = visit()
    page.fill("#num_samples input", "64")
    sample(page)
    page.click("#pictures button[data-pick='1,1']")
    page.wait_for_function("document.querySelector('#details a').getBoundingClientRect().bottom <= innerHeight")


def test_nearest_without_latents_says_so(visit):
    page = visit()
    sample(page)
    page.get_by_role("button", name="Nearest training images").click()
    page.wait_for_selector("#status .error")
    assert "latents" in page.inner_text("#status")


@pytest.fixture
def space(tmp_path) -> Iterator[str]:
    """The address of an exported Space, run as the Hub runs it: by its app.py, a port in the environment."""
    folder = tmp_path / "space"
    export_model(ExportOptions(model=str(write_model(tmp_path / "m").path), out=folder, format="space"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "app.py"]
    with subprocess.Popen(command, cwd=folder, env=os.environ | settings, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        yield next(found[0] for line in process.stdout if (found := re.search(rf"http://\S+:{port}/", line)))
        process.terminate()


def test_an_exported_space_starts_and_samples(visit, space):
    page = visit(space)
    page.fill("#num_samples input", "2")
    sample(page)
    assert page.locator("#pictures img").count() == 2
    assert "mpdit sample model" in page.inner_text("#command")
    assert page.get_by_role("button", name="Nearest training images").count() == 0  # it does not know them
