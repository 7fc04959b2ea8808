"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.play.serving import CONTEXT_FRAMES, Served, serving, tiny_play
from training.store.__main__ import main as store_command
from training.store.episode_store import open_store

sync_api = pytest.importorskip("playwright.sync_api", reason="the extra dev, with Playwright, is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

PIXELS = """id => {
    const canvas = document.getElementById(id);
    return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data].join();
}"""
# So that a test may ask at once for the frame that a key leads to.
AT_STEP = "steps => document.getElementById('app').dataset.steps === String(steps)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def record_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, record_dir: Path) -> Iterator[Served]:
    config = tiny_play(tmp_path_factory.mktemp("play"), real=True, max_players=2, record_dir=record_dir)
    with serving(config) as served:
        yield served


@pytest.fixture
def open_page(browser: Any, served: Served) -> Iterator[Any]:
    """Opens pages, each in a browser profile of its own; none may log an error or ask another server for anything."""
    contexts, errors = [], []

    def open_page(wait: bool = True, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith(served.url) else errors.append(request.url))
        page.goto(served.url)
        if wait:
            at_step(page, 0)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def at_step(page: Any, steps: int) -> None:
    page.wait_for_function(AT_STEP, arg=steps)
    page.wait_for_selector("#veil:not([data-on])", state="attached")


def pixels(page: Any, canvas: str = "main-canvas") -> str:
    return page.evaluate(PIXELS, canvas)


def press(page: Any, key: str, steps: int) -> str:
    """Presses a key, waits for that many steps, and returns what the dream shows then."""
    page.keyboard.press(key)
    at_step(page, steps)
    return pixels(page)


def test_the_page_loads_and_keys_change_both_worlds(open_page: Any) -> None:
    page = open_page()
    assert page.inner_text("#main-id") == "LSSVWM-MemoryMaze-v0"
    assert page.inner_text("#passes") == "1 pass per frame"
    assert pixels(page) == pixels(page, "real-canvas")  # the last frame of the context
    dream, real = pixels(page), pixels(page, "real-canvas")
    press(page, "Digit0", 1)
    press(page, "Digit1", 2)
    assert pixels(page) != dream
    assert pixels(page, "real-canvas") != real
    assert float(page.inner_text("#psnr")) > 0
    assert float(page.inner_text("#latency")) < 5000
    page.get_by_role("button", name="Action 2").click()
    at_step(page, 3)


def test_going_back_shows_the_very_frame_and_leads_to_the_same_future(open_page: Any) -> None:
    page = open_page()
    kept = press(page, "Digit1", 1)
    real = pixels(page, "real-canvas")
    page.keyboard.press("m")
    page.wait_for_selector("#moment-list li")
    future = press(page, "Digit0", 2)
    press(page, "Digit2", 3)
    page.get_by_role("button", name="Go back to moment 1, step 1").click()
    at_step(page, 1)
    assert pixels(page) == kept
    assert pixels(page, "real-canvas") == real
    assert press(page, "Digit0", 2) == future
    page.keyboard.press("b")
    at_step(page, 1)
    assert pixels(page) == kept
    page.get_by_role("button", name="Forget moment 1").click()
    page.wait_for_selector("#moments", state="hidden")


def test_everything_can_be_done_by_keyboard_alone(open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("Space")
    page.wait_for_selector("#pause[aria-pressed=true]")
    page.keyboard.down("1")
    page.keyboard.press("n")
    at_step(page, 1)
    page.keyboard.up("1")
    page.focus("#seed")
    page.keyboard.type("1234")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('seed-now').textContent === '1234'")
    assert page.evaluate("document.activeElement.id") == "main-canvas"
    before = page.locator("#real-screen").bounding_box()
    page.keyboard.press("x")
    after = page.locator("#real-screen").bounding_box()
    assert after["x"] < before["x"]
    page.keyboard.press("-")
    page.keyboard.press("-")
    page.keyboard.press("+")
    assert page.inner_text("#speed-value") == "59 frames/s"


def test_a_recording_made_on_the_page_is_a_valid_store(open_page: Any, record_dir: Path, monkeypatch: Any) -> None:
    page = open_page()
    page.get_by_role("button", name="Record").click()
    page.wait_for_selector("#record[aria-pressed=true]")
    at_step(page, 0)
    for steps, key in enumerate(["Digit0", "Digit1", "Digit0", "Digit2"], start=1):
        press(page, key, steps)
    seed = int(page.inner_text("#seed-now"))
    page.get_by_role("button", name="Record").click()
    page.wait_for_selector("#record[aria-pressed=false]")
    stores = sorted(record_dir.iterdir())
    assert len(stores) == 2
    for path, num_frames in zip(stores, (5, CONTEXT_FRAMES + 4), strict=True):
        monkeypatch.setattr(sys, "argv", ["store", "validate", str(path)])
        with pytest.raises(SystemExit) as exit_info:
            store_command()
        assert exit_info.value.code == 0
        episode = open_store(path).read(seed)
        assert episode.num_frames == num_frames
        assert episode.actions[-4:].tolist() == [0, 1, 0, 2]


def test_two_tabs_are_two_dreams_and_a_third_is_told_that_the_server_is_full(open_page: Any) -> None:
    one, other = open_page(), open_page()
    press(one, "Digit0", 1)
    press(one, "Digit0", 2)
    assert other.get_attribute("#app", "data-steps") == "0"
    late = open_page(wait=False)
    late.wait_for_function("() => document.getElementById('live').textContent.includes('full')")
    assert "all 2 places are taken" in late.inner_text("#veil-text")
    one.close()
    at_step(late, 0)  # it takes the place by itself


def test_the_page_fits_a_phone_and_is_played_by_touch(open_page: Any) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= 390)
    before = pixels(page)
    page.get_by_role("button", name="Action 1").tap()
    at_step(page, 1)
    assert pixels(page) != before


def test_every_control_has_a_name_for_those_who_do_not_see_it(open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("m")
    page.wait_for_selector("#moment-list li")
    names = page.evaluate("""() => [...document.querySelectorAll("button, input, canvas[role]")]
        .filter(element => element.checkVisibility())
        .map(element => (element.ariaLabel || element.innerText || element.labels?.[0]?.innerText || "").trim())""")
    assert len(names) > 12
    assert all(names)


def test_a_hidden_page_pauses_its_dream(open_page: Any) -> None:
    page = open_page()
    for hidden in ("true", "false"):
        page.evaluate(f"""() => {{
            Object.defineProperty(document, "hidden", {{ value: {hidden}, configurable: true }});
            document.dispatchEvent(new Event("visibilitychange"));
        }}""")
        page.wait_for_selector(f"#pause[aria-pressed={hidden}]")
