"""The page in headless Chromium: no error, keys and buttons, both widths, light and dark.

It is skipped where playwright or a Chromium is missing. `apt-get install chromium` and the extra
`test` bring them.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trm.experiments.trained.model import load
from trm.experiments.viewing.report import report_html

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (extra `test`)"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (apt-get install chromium)"),
    # The fork of playwright's driver process, which this file does not make.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
NO_SANDBOX = "--no-sandbox"
"""Chromium's own sandbox refuses to run as root, as in a container."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    names = ("pretrained:sudoku4x4", "pretrained:sudoku4x4-hard")
    path.write_text(report_html([load(name, threads=1) for name in names], replays=2))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[NO_SANDBOX])
        yield browser
        browser.close()


class Watched:
    """A page with what it said to the console and what it asked the network for."""

    def __init__(self, browser: Any, file: Path, *, width: int = 1280, scheme: str = "light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    @property
    def caption(self) -> str:
        text: str = self.page.inner_text("[data-part=caption]")
        return text


@pytest.fixture
def watched(browser: Any, file: Path) -> Iterator[Watched]:
    watched = Watched(browser, file)
    yield watched
    watched.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window_without_an_error_or_a_request(
    browser: Any, file: Path, width: int, scheme: str
) -> None:
    watched = Watched(browser, file, width=width, scheme=scheme)
    page = watched.page
    for _ in range(30):  # beyond the end
        page.keyboard.press("ArrowRight")
    assert "The outcome: solved" in watched.caption
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.said == [] and watched.asked == [file.as_uri()]
    watched.context.close()


def test_arrow_keys_step_and_home_and_end_jump(watched: Watched) -> None:
    page = watched.page
    start = watched.caption
    assert start.startswith("Start;")
    page.keyboard.press("ArrowRight")
    assert watched.caption.startswith("Edit 1 of")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert watched.caption.startswith("Edit 1 of")
    page.keyboard.press("End")
    assert "The outcome: solved" in watched.caption
    page.keyboard.press("Home")
    assert watched.caption == start


def test_space_plays_and_pauses_and_the_buttons_do_what_they_say(watched: Watched) -> None:
    page = watched.page
    page.clock.install()  # the page's time goes on when the test says so
    page.reload()
    page.keyboard.press(" ")
    assert page.inner_text("[data-part=play]") == "Pause"
    before = watched.caption
    page.clock.run_for(500)  # one edit
    assert watched.caption != before
    page.keyboard.press(" ")
    assert page.inner_text("[data-part=play]") == "Play"
    page.get_by_role("button", name="First").click()
    page.get_by_role("button", name="Next").click()
    assert watched.caption.startswith("Edit 1 of")
    page.get_by_role("button", name="Last").click()
    assert "The outcome" in watched.caption
    page.get_by_role("button", name="Back").click()
    assert "The outcome" not in watched.caption


def test_every_control_is_reached_by_the_keyboard_and_has_a_name(watched: Watched) -> None:
    page, reached = watched.page, set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.part || ''"))
    assert {"run", "puzzle", "first", "back", "play", "next", "last", "slider"} <= reached
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, select, input")].filter((one) => !one.hidden &&
        !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels.length)).length"""
    )
    assert unnamed == 0
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0


def test_the_board_is_read_aloud_as_it_is_drawn(watched: Watched) -> None:
    page = watched.page
    page.keyboard.press("End")
    spoken = page.get_attribute("[data-part=board] svg", "aria-label")
    drawn = page.locator("[data-part=board] text:not(.mini)").all_text_contents()
    assert spoken is not None and "blank" not in spoken
    said = [word for row in spoken.split("; ") for word in row.split(": ")[1].split()]
    assert said == drawn and len(said) == 16


def test_colour_follows_what_is_chosen(watched: Watched) -> None:
    page = watched.page
    assert page.locator(".heat-chance").count() > 0
    page.get_by_label("expected return of each edit").check()
    assert page.locator(".heat-chance").count() == 0 and page.locator(".heat-value").count() > 0
    page.get_by_label("nothing").check()
    assert page.locator("[class^=heat-]").count() == 0


def test_another_run_and_another_puzzle_start_anew(watched: Watched) -> None:
    page = watched.page
    page.keyboard.press("ArrowRight")
    page.select_option("#puzzle", index=1)
    assert watched.caption.startswith("Start;")
    before = page.get_attribute("[data-part=board] svg", "aria-label")
    page.select_option("#run", index=1)
    assert page.get_attribute("[data-part=board] svg", "aria-label") != before


def test_arrow_keys_inside_a_list_choose_there_and_do_not_step(watched: Watched) -> None:
    page = watched.page
    page.focus("[data-part=puzzle]")
    page.keyboard.press("ArrowDown")
    assert watched.caption.startswith("Start;")
    assert page.input_value("[data-part=puzzle]") == "1"
