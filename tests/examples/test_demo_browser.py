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
from PIL import Image

from tests.builders.paths import PICTURES, REPOSITORY
from tests.builders.scripts import load_script


pytestmark = pytest.mark.browser

QUESTION, ANSWER = "List the items in the second row.", "sneaker, coat, dress, sandal"  # which the page begins with
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
SCREENS = [pytest.param(DESKTOP, id="1280"), pytest.param(PHONE, id="390")]
DARK = pytest.param({**DESKTOP, "color_scheme": "dark"}, id="1280_dark")
# What is gradio's own: a rule of axe, and the element that breaks it; and what its client writes where it cannot end
# a stream.
GRADIOS_VIOLATIONS = {("nested-interactive", ".toast-header")}
GRADIOS_WARNINGS = {"Method not implemented."}


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
    """A page that has loaded, whatever else it asks of whom, and writes into the console, written down."""
    context = browser.new_context(**{**DESKTOP, **options})
    page = context.new_page()
    page.set_default_timeout(60_000)
    hosts, messages = set(), set()
    page.on("request", lambda request: hosts.add(urlparse(request.url).netloc))
    page.on("console", lambda message: messages.add(message.text))
    page.on("pageerror", lambda error: messages.add(str(error)))
    page.goto(address)
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    page.locator("#picture img").wait_for()
    try:
        yield page
        assert hosts - {""} == {urlparse(address).netloc}  # "" are data: and blob:
        assert messages <= GRADIOS_WARNINGS
    finally:
        context.close()


def check_accessibility(page):
    """By axe, all of its rules; contrast once nothing fades in or out."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: `nox -s browser`")
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    violations = axe.Axe().run(page).response["violations"]
    found = {(violation["id"], *node["target"]) for violation in violations for node in violation["nodes"]}
    assert found <= GRADIOS_VIOLATIONS


def screenshot(page, name, full_page=False):
    if folder := os.environ.get("SCREENSHOTS"):
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until what fades in and scrolls has done so
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=full_page)


def pick_example(page, number):
    page.get_by_role("button", name=f"Thumbnail {number} of 4").click()
    page.locator(f"#picture img[src*=mosaic_{number - 1}]").wait_for()


def upload(page, path):
    page.locator("#picture").get_by_label("Remove Image").click()
    page.locator("#picture input[type=file]").set_input_files(path)


def ask(page):
    page.get_by_role("button", name="Ask", exact=True).click()


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


@pytest.fixture
def name(request):
    """Of the screen, for screenshots."""
    return request.node.callspec.id


@pytest.mark.parametrize("screen", [*SCREENS, DARK])
def test_the_first_visit_ends_with_an_answer(browser, address, screen, name):
    """One click, on what the page begins with; the answer is on the screen, and the question still there."""
    with visit(browser, address, **screen) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= screen["viewport"]["width"]
        page.get_by_text("This model knows only mosaics of 4 x 4 photos of clothes").wait_for()
        screenshot(page, f"{name}_first")
        check_accessibility(page)
        ask(page)
        page.get_by_text("16 visual tokens ·").wait_for()
        assert page.get_by_label("Question", exact=True).input_value() == QUESTION
        page.wait_for_timeout(1000)  # until it has scrolled
        box = page.get_by_text(ANSWER).first.bounding_box()
        assert 0 <= box["y"] and box["y"] + box["height"] <= screen["viewport"]["height"]
        screenshot(page, f"{name}_answer")
        check_accessibility(page)
        page.get_by_text("What do the numbers mean?").click()
        page.get_by_text("Why fewer tokens are hardly faster here").wait_for()
        screenshot(page, f"{name}_words")
        check_accessibility(page)


def test_an_answer_grows_and_a_conversation_goes_on(browser, address):
    with visit(browser, address) as page:
        set_slider(page, 1)
        # What the answer looks like at each moment, to see that it came in pieces.
        page.evaluate(
            """() => { window.seen = new Set(); new MutationObserver(() => {
                for (const bot of document.querySelectorAll('[role=log] .bot.message')) window.seen.add(bot.innerText)
            }).observe(document.body, {subtree: true, childList: true, characterData: true}) }"""
        )
        ask(page)
        page.get_by_text("1 visual token ·").wait_for()
        assert page.get_by_text("GFLOPs ·").count() == 1
        seen = [text.strip() for text in page.evaluate("[...window.seen]")]
        (whole,) = {text.split("\n")[0] for text in seen if "visual token" in text}
        pieces = [text for text in seen if text and text != whole and whole.startswith(text)]
        assert len(pieces) >= 2, seen
        # A second question goes on with the first; another picture begins anew.
        set_slider(page, 16)
        ask(page)
        page.get_by_text("16 visual tokens ·").wait_for()
        assert page.get_by_text("1 visual token ·").count() == 1 and page.get_by_text(ANSWER).count() >= 1
        page.evaluate("scrollTo(0, 0)")
        screenshot(page, "demo_web", full_page=True)
        pick_example(page, 2)
        page.get_by_text("GFLOPs ·").first.wait_for(state="detached")


@pytest.mark.parametrize("screen", SCREENS)
def test_side_by_side_and_heatmap(browser, address, screen, name):
    with visit(browser, address, **screen) as page:
        page.get_by_role("tab", name="Side by side").click()
        page.get_by_role("button", name="Ask with each of these numbers").click()
        page.get_by_text("Times: the median of").wait_for()
        for number in ("1", "2", "4", "8", "16", "auto: 16"):
            assert page.get_by_role("rowheader", name=number, exact=True).count() == 1
        assert page.get_by_role("cell", name=ANSWER).count() >= 1
        screenshot(page, f"{name}_side_by_side")
        check_accessibility(page)
        page.get_by_role("tab", name="Heatmap").click()
        page.get_by_role("button", name="Show where the answer comes from").click()
        page.get_by_role("img", name="Heatmap 4 of 4: where sandal comes from").wait_for()
        screenshot(page, f"{name}_heatmap")
        check_accessibility(page)


def test_auto_reaches_every_tab(browser, address):
    with visit(browser, address) as page:
        page.get_by_label("Auto: as many as the question needs").check()
        say(page, "Are there any trousers?")
        page.get_by_text("1 visual token, chosen by auto ·").wait_for()
        assert page.get_by_role("slider", name="Visual tokens").is_disabled()
        page.get_by_role("tab", name="Side by side").click()
        page.get_by_role("button", name="Ask with each of these numbers").click()
        page.get_by_role("rowheader", name="auto: 1", exact=True).wait_for()
        page.get_by_text("Times: the median of").wait_for()
        page.get_by_role("tab", name="Heatmap").click()
        page.get_by_role("button", name="Show where the answer comes from").click()
        page.get_by_text("Answer with 1 visual token, chosen by auto, part by part.").wait_for()


@pytest.mark.parametrize("screen", SCREENS)
def test_answers_about_other_pictures_are_marked_in_every_tab(browser, address, screen, name, tmp_path):
    Image.effect_mandelbrot((400, 300), (-2, -1.5, 1, 1.5), 60).convert("RGB").save(tmp_path / "drawing.png")
    with visit(browser, address, **screen) as page:
        upload(page, tmp_path / "drawing.png")
        page.get_by_text("This picture is nothing like them: every answer is a guess.").wait_for()
        ask(page)
        page.get_by_text("A guess: this picture").wait_for()
        screenshot(page, f"{name}_guess")
        check_accessibility(page)
        for tab, button in (("Side by side", "Ask with each"), ("Heatmap", "Show where")):
            page.get_by_role("tab", name=tab).click()
            page.get_by_role("button", name=button).click()
            page.locator("p.guess", has_text="A guess: this picture").locator("visible=true").wait_for()
            page.get_by_text("Times: the median of" if tab == "Side by side" else "part by part").wait_for()
        pick_example(page, 1)
        page.get_by_text("This picture is nothing like them").wait_for(state="detached")


@pytest.mark.parametrize("screen", SCREENS)
def test_files_that_are_no_pictures_are_refused_where_they_were_chosen(browser, address, screen, name, tmp_path):
    broken, cut = tmp_path / "broken.png", tmp_path / "cut.png"
    broken.write_bytes(b"no picture at all")
    whole = (PICTURES / "mosaic_0.png").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    for path, message in ((broken, "cannot be read as an image"), (cut, "This image is damaged")):
        with visit(browser, address, **screen) as page:
            upload(page, path)
            page.get_by_text(message).wait_for()
            screenshot(page, f"{name}_{path.stem}")
            check_accessibility(page)
            # And what is asked about it all the same gets the same answer, not a blank.
            ask(page)
            page.get_by_text(message).nth(1).wait_for()
            assert page.get_by_text(str(tmp_path)).count() == 0


def test_a_phone_and_a_keyboard_suffice(browser, address):
    with visit(browser, address, **PHONE) as page:
        page.get_by_role("button", name="Thumbnail 1 of 4").focus()
        page.keyboard.press("Enter")
        for _ in range(60):  # to the question by tabs alone
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.tagName") == "TEXTAREA":
                break
        page.keyboard.press("Control+A")
        page.keyboard.type(QUESTION)
        page.keyboard.press("Enter")
        page.get_by_text("16 visual tokens ·").wait_for()
        assert page.get_by_text(ANSWER).count() >= 1


def test_an_answer_about_a_new_picture_outlives_the_change_to_it():
    """It may begin before the page knows that the picture has changed."""
    pytest.importorskip("gradio", reason="needs gradio: `nox -s browser`")
    page = load_script("examples/demo_page.py").Page(answerer=None)
    old, new = ("old.png", QUESTION, "coat", ""), ("new.png", QUESTION, "sandal", "")
    chat, turns, *others = page.change("new.png", [old, new])
    assert [message["content"] for message in chat] == [QUESTION, "sandal"]
    assert turns == [new] and others == ["", ""]
    assert page.change(None, [old, new])[:2] == ([], [])


def test_what_is_missing_is_said(browser, address):
    with visit(browser, address) as page:
        say(page, "   ")
        page.get_by_text("Ask a question first").wait_for()
        page.get_by_role("button", name="Is there any footwear?").click()
        ask(page)
        page.get_by_text("16 visual tokens ·").wait_for()
        page.locator("#picture").get_by_label("Remove Image").click()
        ask(page)
        page.get_by_text("Choose a picture first").wait_for()
        assert page.get_by_text("Error", exact=True).count() == 0  # no pill over what is there
        check_accessibility(page)
