"""`report.html` in a browser: what a reader does with mouse and keyboard, and what does not run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser, browsing, executable
from test_html_report import HOSTILE, hostile_page, orders, page, units, whole  # noqa: F401

from gatepruner.errors import visible
from gatepruner.report.html.document import document

PERMISSIONS = ["clipboardReadWrite", "clipboardSanitizedWrite"]
pytestmark = pytest.mark.skipif(executable() is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Browser:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def opened(browser, page, tmp_path) -> Browser:  # noqa: F811
    """The browser with the page, at its first state."""
    (tmp_path / "report.html").write_text(document(page), "utf-8")
    browser.open(tmp_path / "report.html")
    return browser


def look(browser: Browser) -> dict:
    """What the page shows."""
    return browser.value(
        """(() => {
          const text = (selector) => document.querySelector(selector).textContent;
          const all = (selector) => [...document.querySelectorAll(selector)];
          return {
            at: Number(document.querySelector("#slider").value),
            said: document.querySelector("#slider").getAttribute("aria-valuetext"),
            title: text("#state"), command: text("#command"), detail: text("#detail"),
            values: all("#readings dd").map((each) => each.textContent),
            gone: all(".block.gone").map((each) => each.getAttribute("aria-label")),
            row: text("tr[aria-current] th"),
            mark: document.querySelector("#mark").getAttribute("transform"),
            off: all(".lines .off").map((each) => each.dataset.curve),
            focus: document.activeElement.getAttribute("aria-label"),
          };
        })()"""
    )


def check(browser: Browser, page, curve: int, at: int) -> None:  # noqa: F811
    """All parts of the page show the same state of a curve."""
    shown, expected = look(browser), page.curves[curve].states[at]
    assert shown["at"] == at
    assert shown["said"] == shown["title"] == expected.title
    assert shown["values"][0] == f"{100 * expected.share:.2f} %"
    assert shown["command"] == expected.command
    assert shown["row"] == str(page.curves[0].states[at].removed)
    gone = page.curves[curve].order[: expected.removed]
    assert {label.partition(":")[0] for label in shown["gone"]} == set(gone)
    assert all(label.endswith("removed") for label in shown["gone"])


def test_nothing_is_complained_of_and_nothing_is_asked_for(opened, page):  # noqa: F811
    check(opened, page, 0, page.start)
    assert opened.complaints() == []
    (only,) = opened.requests()
    assert only.startswith("file:")


def test_arrow_keys_on_the_slider(opened, page):  # noqa: F811
    opened.value("document.querySelector('#slider').focus()")
    opened.press("Home")
    check(opened, page, 0, 0)
    opened.press("ArrowRight", 2)
    check(opened, page, 0, 2)
    opened.press("End")
    check(opened, page, 0, len(page.curves[0].states) - 1)


def test_the_bars_of_narrowed_blocks_are_as_narrow(browser, units, tmp_path):  # noqa: F811
    page, bars = units[1], "[...document.querySelectorAll('.block rect')]"  # noqa: F811
    (tmp_path / "report.html").write_text(document(page), "utf-8")
    browser.open(tmp_path / "report.html")
    browser.value("document.querySelector('#slider').focus()")
    browser.press("Home")
    for state in page.curves[0].states:
        widths = browser.value(f"{bars}.map((bar) => Number(bar.getAttribute('width')))")
        titles = browser.value(f"{bars}.map((bar) => bar.closest('.block').title)")
        for block, width, title in zip(page.blocks, widths, titles, strict=True):
            left, _ = state.left.get(block.name, {}).get(f"{block.name}.branch.linear1", (8, 8))
            assert width == pytest.approx(10 * left / 8, abs=0.1)
            assert ("channels left" in title) == (left < 8)
        browser.press("ArrowRight")


def test_a_drag_of_the_slider(opened, page):  # noqa: F811
    opened.value("document.querySelector('#slider').focus()")
    opened.press("Home")
    x, y = opened.place("#slider")
    left, width = opened.value(
        "(() => { const box = document.querySelector('#slider').getBoundingClientRect();"
        "return [box.x, box.width]; })()"
    )
    opened.mouse("mousePressed", left + 8, y)
    opened.mouse("mouseMoved", left + width / 4, y)
    opened.mouse("mouseMoved", x, y)
    opened.mouse("mouseReleased", x, y)
    check(opened, page, 0, 3)  # of 0 to 6


def test_a_click_on_a_block_shows_the_network_just_after_its_removal(opened, page):  # noqa: F811
    for place in (3, 0, 5):
        number = [block.name for block in page.blocks].index(page.curves[0].order[place])
        opened.click(f"[data-block='{number}']")
        check(opened, page, 0, place + 1)
        assert f"number {place + 1} to go, removed" in look(opened)["detail"]


def test_arrow_keys_lead_from_block_to_block_and_tab_only_to_one(opened, page):  # noqa: F811
    opened.value("document.querySelector('#slider').focus()")
    names = []
    for key in ("Tab", "ArrowRight", "ArrowRight", "End", "ArrowRight", "Home", "ArrowLeft"):
        opened.press(key)
        names.append(look(opened)["focus"].partition(":")[0])
    blocks = [block.name for block in page.blocks]
    assert names == [*blocks[:3], blocks[-1], blocks[-1], blocks[0], blocks[0]]
    assert look(opened)["detail"].startswith(blocks[0])
    opened.press("Tab")
    assert not (look(opened)["focus"] or "").startswith("blocks")
    stops = opened.value("document.querySelectorAll('.block[tabindex=\"0\"]').length")
    assert stops == 1


def test_orders_are_chosen_and_their_lines_hidden(opened, page):  # noqa: F811
    before = look(opened)["mark"]
    opened.click("#curve-1")
    check(opened, page, 1, page.start)
    opened.value("document.querySelector('#slider').focus()")
    opened.press("Home")
    opened.press("ArrowRight", 3)
    check(opened, page, 1, 3)
    assert look(opened)["mark"] != before
    opened.click("input[type=checkbox][value='0']")
    assert look(opened)["off"] == ["0"]
    opened.click("input[type=checkbox][value='0']")
    assert look(opened)["off"] == []


@pytest.mark.parametrize("allowed", [True, False])
def test_the_command_is_copied(opened, page, allowed):  # noqa: F811
    opened.call("Browser.grantPermissions", permissions=PERMISSIONS)
    if not allowed:
        opened.value("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    opened.click("#copy")
    assert opened.value("new Promise((done) => setTimeout(done, 200))") is None
    assert opened.value("document.querySelector('#copied').textContent") == "copied"
    told = opened.value("navigator.clipboard.readText()")
    assert told == page.curves[0].states[page.start].command != ""


def test_a_command_that_cannot_be_copied_is_selected(opened, page):  # noqa: F811
    opened.value("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    opened.value("document.execCommand = () => false")
    opened.click("#copy")
    opened.value("new Promise((done) => setTimeout(done, 100))")
    assert "selected" in opened.value("document.querySelector('#copied').textContent")
    assert opened.value("String(getSelection())") == page.curves[0].states[page.start].command


def test_everything_that_takes_the_focus_has_a_name_and_the_change_is_told(opened):
    nodes = opened.call("Accessibility.getFullAXTree")["nodes"]
    shown = [one for one in nodes if not one["ignored"]]
    named = {"slider", "button", "radio", "checkbox", "image", "region", "list", "heading"}
    seen = [one for one in shown if one["role"]["value"] in named - {"list"}]
    assert {"slider", "button", "radio", "checkbox", "image"} <= {
        one["role"]["value"] for one in seen
    }
    assert [one for one in seen if not one.get("name", {}).get("value")] == []
    opened.value("document.querySelector('#slider').focus()")
    opened.press("Home")
    opened.value("new Promise((done) => setTimeout(done, 700))")
    assert opened.value("document.querySelector('#said').textContent").startswith(
        "0 blocks removed: "
    )
    assert opened.value("document.querySelector('#said').getAttribute('role')") == "status"


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_window(opened, width):
    opened.resize(width, 844)
    assert opened.value("document.documentElement.scrollWidth") <= width


def test_print_shows_every_row_and_no_controls(opened):
    opened.call("Emulation.setEmulatedMedia", media="print")
    shown = "(selector) => document.querySelector(selector).getClientRects().length > 0"
    assert not opened.value(f"({shown})('#slider')")
    assert not opened.value(f"({shown})('#copy')")
    assert opened.value(f"({shown})('.figure')")
    style = "getComputedStyle(document.querySelector('.scroll'))"
    assert opened.value(f"[{style}.maxHeight, {style}.overflow]") == ["none", "visible"]
    opened.call("Emulation.setEmulatedMedia", media="")


def test_without_script_there_is_the_figure_and_the_table(browser, page, tmp_path):  # noqa: F811
    text = document(page)
    (tmp_path / "report.html").write_text(text.replace('"use strict";', '"other";'), "utf-8")
    browser.open(tmp_path / "report.html")  # its script is not that of the policy
    (complaint,) = browser.complaints()
    assert "Content Security Policy" in complaint
    shown = "(selector) => document.querySelector(selector).getClientRects().length > 0"
    for selector, expected in ((".figure", True), ("table", True), (".block.gone", True)):
        assert browser.value(f"({shown})('{selector}')") == expected
    for selector in ("#slider", "#copy", "input[type=radio]", "input[type=checkbox]"):
        assert not browser.value(f"({shown})('{selector}')")


def test_hostile_names_run_nothing_and_are_shown(browser, page, tmp_path):  # noqa: F811
    hostile = hostile_page(page)
    (tmp_path / "report.html").write_text(document(hostile), "utf-8")
    browser.open(tmp_path / "report.html")
    browser.value("document.querySelector('#slider').focus()")
    browser.press("Home")
    browser.press("ArrowRight", 3)
    browser.click("#curve-1")
    browser.mouse("mouseMoved", 1, 1)  # where no block can come to lie below it
    for number in range(len(hostile.blocks)):
        browser.value(f"document.querySelector('[data-block=\"{number}\"]').focus()")
        detail = look(browser)["detail"]
        assert detail.startswith(f"{visible(HOSTILE[number])}: ")
    assert browser.value("typeof canary") == "undefined"
    assert browser.value("document.querySelectorAll('script, img, iframe, svg svg').length") == 2
    assert look(browser)["title"] == visible(HOSTILE[3])
    assert browser.complaints() == []
    assert len(browser.requests()) == 1


@pytest.mark.parametrize(
    "attack",
    [
        "<script>canary = 1</script>",
        "<img src='file:///canary.png' onerror='canary = 1'>",
        "<style>body { background: url(http://127.0.0.1:9/canary) }</style>",
        "<button autofocus onfocus='canary = 1'>x</button>",
        "<link rel=stylesheet href='http://127.0.0.1:9/canary'>",
    ],
)
def test_what_would_slip_through_is_stopped_by_the_policy(
    browser,
    page,  # noqa: F811
    tmp_path,
    attack,
):
    text = document(page).replace("<main>", f"<main>{attack}")
    (tmp_path / "report.html").write_text(text, "utf-8")
    browser.open(tmp_path / "report.html")
    assert browser.value("typeof canary") == "undefined"
    assert any("Content Security Policy" in each for each in browser.complaints())
    assert [each for each in browser.requests() if "canary" in each] == []


def test_the_report_of_a_run_opens_without_a_complaint(browser, page, tmp_path):  # noqa: F811
    """As large as a page gets here: a curve for each of the ten colours."""
    many = replace(page, curves=[*page.curves] * 5)
    path = Path(tmp_path / "report.html")
    path.write_text(document(many), "utf-8")
    assert len(json.dumps(path.read_text())) < 200_000
    browser.open(path)
    browser.click("#curve-9")
    assert browser.complaints() == []
