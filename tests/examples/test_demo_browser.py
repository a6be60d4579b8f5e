"""
The web demo in a headless Chromium, as a visitor uses it: `nox -s browser`.

With SCREENSHOTS=FOLDER in the environment it leaves pictures there, to be looked at.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

import pytest

from tests.builders.paths import PICTURES, REPOSITORY


pytestmark = pytest.mark.browser

QUESTION, ANSWER = "List the items in the second row.", "sneaker, coat, dress, sandal"  # of mosaic_0.png


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the demo serves, a process of its own, as started by a visitor; with it, all that it stored is gone."""
    pytest.importorskip("gradio", reason="needs gradio: `nox -s browser`")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, REPOSITORY / "examples" / "demo.py", "--port", str(port)]
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"},
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
    while True:
        try:
            urlopen(url, timeout=5).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.5)
    yield url
    process.terminate()  # as `kill` and containers do
    assert process.wait(60) == 0, (folder / "log.txt").read_text()
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"log.txt"}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: `nox -s browser`")
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("needs Chromium, such as Debian's package chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visit(browser, address, **options):
    """A page that has loaded, whatever else it asks of whom written down."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(30_000)
    hosts = set()
    page.on("request", lambda request: hosts.add(urlparse(request.url).netloc))
    page.goto(address)
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    try:
        yield page
        assert hosts - {""} == {urlparse(address).netloc}  # "" are data: and blob:
    finally:
        context.close()


def screenshot(page, name):
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def pick_example(page, number):
    page.get_by_role("button", name=f"Thumbnail {number} of 4").click()
    page.locator("#picture img").wait_for()


def say(page, question):
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_label("Question", exact=True).press("Enter")


def set_slider(page, number):
    slider = page.get_by_role("slider", name="Visual tokens")
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(number - 1):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == str(number)


def test_an_example_is_asked_about_with_a_chosen_number(browser, address):
    with visit(browser, address) as page:
        pick_example(page, 1)
        set_slider(page, 1)
        # What the answer looks like at each moment, to see that it came in pieces.
        page.evaluate(
            """() => { window.seen = new Set(); new MutationObserver(() => {
                for (const bot of document.querySelectorAll('[role=log] .bot.message')) window.seen.add(bot.innerText)
            }).observe(document.body, {subtree: true, childList: true, characterData: true}) }"""
        )
        say(page, QUESTION)
        page.get_by_text("1 visual token ·").wait_for()
        assert page.get_by_text("GFLOPs").count() == 1
        seen = [text.strip() for text in page.evaluate("[...window.seen]")]
        (whole,) = {text.split("\n")[0] for text in seen if "visual token" in text}
        pieces = [text for text in seen if text and text != whole and whole.startswith(text)]
        assert len(pieces) >= 2, seen
        # A second question goes on with the first; another picture begins anew.
        set_slider(page, 16)
        say(page, QUESTION)
        page.get_by_text("16 visual tokens ·").wait_for()
        assert page.get_by_text(ANSWER).count() >= 1
        screenshot(page, "demo_web")
        pick_example(page, 2)
        page.get_by_text("GFLOPs").first.wait_for(state="detached")


def test_auto_shows_the_level_that_it_chose(browser, address):
    with visit(browser, address) as page:
        pick_example(page, 3)
        page.get_by_label("Auto: as many as the question needs").check()
        say(page, "Is there any footwear?")
        page.get_by_text("auto: 1 visual token ·").wait_for()
        assert page.get_by_role("slider", name="Visual tokens").is_disabled()


def test_side_by_side_and_heatmap(browser, address):
    with visit(browser, address) as page:
        pick_example(page, 1)
        page.get_by_label("Question", exact=True).fill(QUESTION)
        page.get_by_role("tab", name="Side by side").click()
        page.get_by_role("button", name="Ask with each of these numbers").click()
        page.get_by_role("gridcell", name="16", exact=True).wait_for()
        assert [page.get_by_role("gridcell", name=str(m), exact=True).count() for m in (1, 2, 4, 8)] == [1, 1, 1, 1]
        assert page.get_by_role("gridcell", name=ANSWER).count() >= 1
        screenshot(page, "side_by_side")
        page.get_by_role("tab", name="Heatmap").click()
        page.get_by_role("button", name="Show where the answer comes from").click()
        heatmap = page.get_by_role("img", name=f"first words of: {ANSWER}")
        heatmap.wait_for()
        assert heatmap.evaluate("image => image.naturalWidth") == 900
        screenshot(page, "heatmap")


def test_files_that_are_no_pictures_are_refused_with_a_message(browser, address, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture at all")
    cut = tmp_path / "cut.png"
    whole = (PICTURES / "mosaic_0.png").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    for path, message in ((broken, "cannot be read as an image"), (cut, "This image is damaged")):
        with visit(browser, address) as page:
            page.locator("#picture input[type=file]").set_input_files(path)
            page.get_by_text(message).wait_for()
            page.wait_for_timeout(500)  # until it has faded in
            screenshot(page, path.stem)
            assert page.get_by_text(str(tmp_path)).count() == 0
            # And what is asked about it all the same gets the same answer, not a blank.
            say(page, QUESTION)
            page.get_by_text(message).nth(1).wait_for()


def test_a_phone_and_a_keyboard_suffice(browser, address):
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    with visit(browser, address, **phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("button", name="Thumbnail 1 of 4").focus()
        page.keyboard.press("Enter")
        page.locator("#picture img").wait_for()
        for _ in range(60):  # to the question by tabs alone
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.tagName") == "TEXTAREA":
                break
        page.keyboard.type(QUESTION)
        page.keyboard.press("Enter")
        page.get_by_text("16 visual tokens ·").wait_for()
        assert page.get_by_text(ANSWER).count() >= 1
        unnamed = page.evaluate("[...document.images].filter(image => image.alt === '').map(image => image.src)")
        assert unnamed == []
        screenshot(page, "phone")


def test_what_is_missing_is_said(browser, address):
    with visit(browser, address) as page:
        say(page, QUESTION)
        page.get_by_text("Choose a picture first").wait_for()
        pick_example(page, 1)
        say(page, "   ")
        page.get_by_text("Ask a question first").wait_for()
