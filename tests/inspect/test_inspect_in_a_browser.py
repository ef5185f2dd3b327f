"""The page in a real browser: scrubbing moves pictures, paths and curves; nothing is logged."""

import numpy as np
import pytest
from browser import needs_browser, running_browser

from diffusion_policy.inspect.page import build_page
from diffusion_policy.inspect.summary import summarize

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with running_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def set_size(browser, width, height, mobile=False):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.devtools("Emulation.setDeviceMetricsOverride", **size)


@pytest.fixture
def page(browser, make_data_set, tmp_path):
    """The browser showing a data set with one value missing, at step 3 of episode 1."""

    def change(arrays):
        arrays["pos"][13, 0] = np.nan

    summary = summarize(make_data_set(change=change))
    path = build_page(summary, tmp_path / "page.html", max_frames=100)
    set_size(browser, 1280, 1600)
    browser.command("/url", url=path.as_uri())
    yield browser
    assert browser.console() == []


def scrub(page, step):
    page.run(
        f"const s = document.getElementById('step'); s.value = {step};"
        "s.dispatchEvent(new Event('input'))"
    )


def state(page):
    """What is shown: the text beside the slider, the brightness of the picture, caption, path."""
    page.wait_for("document.querySelector('#stage img').complete")
    return page.run(
        """
        const image = document.querySelector('#stage img');
        const canvas = document.createElement('canvas');
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0);
        return {
          where: document.getElementById('where').textContent,
          brightness: context.getImageData(5, 5, 1, 1).data[0],
          caption: document.querySelector('#stage figcaption').textContent,
          here: document.querySelector('#stage .here').getAttribute('d'),
          action: document.querySelector('#charts .key').textContent,
          cursor: document.querySelector('#charts .cursor').style.left,
        };
        """
    )


def click(page, selector):
    page.run(f"document.querySelector({selector!r}).click()")


def test_scrubbing_changes_the_picture_the_path_and_the_numbers(page):
    before = state(page)
    assert before["where"] == "step 0 of 9"
    assert before["caption"] == "img, step 0"
    assert before["brightness"] == 0
    scrub(page, 9)
    after = state(page)
    assert after["where"] == "step 9 of 9"
    assert after["caption"] == "img, step 9"
    assert abs(after["brightness"] - 36) <= 1
    assert (before["cursor"], after["cursor"]) == ("0%", "100%")
    assert before["here"] != after["here"]
    assert before["action"] != after["action"]


def test_the_arrows_and_the_list_choose_the_episode(page):
    assert page.run("return document.getElementById('previous').disabled")
    click(page, "#next")
    shown = state(page)
    assert shown["where"] == "step 0 of 11"
    assert abs(shown["brightness"] - 40) <= 1
    page.run(
        "const e = document.getElementById('episode'); e.selectedIndex = 4;"
        "e.dispatchEvent(new Event('change'))"
    )
    assert state(page)["where"] == "step 0 of 10"
    assert page.run("return document.getElementById('next').disabled")


def test_a_finding_leads_to_its_place(page):
    click(page, ".findings button")
    assert state(page)["where"] == "step 3 of 11"
    assert page.run("return document.querySelectorAll('#charts .key')[8].textContent") == "[0] –"


def test_curves_are_interrupted_where_a_value_is_missing(page):
    click(page, "#next")
    pieces = "return [...document.querySelectorAll('#charts .line')].map(p => p.getAttribute('d'))"
    lines = page.run(pieces)
    assert len(lines) == 2 + 6 + 2
    assert [line.count("M") for line in lines] == [1] * 8 + [2, 1]


def test_a_press_in_a_chart_seeks(page):
    page.run("document.querySelector('#charts').scrollIntoView()")
    left, top, width, height = page.run(
        "const r = document.querySelector('#charts .plot').getBoundingClientRect();"
        "return [r.left, r.top, r.width, r.height]"
    )
    at = {"x": left + 6 / 9 * width, "y": top + height / 2, "button": "left", "clickCount": 1}
    page.devtools("Input.dispatchMouseEvent", type="mousePressed", **at)
    page.devtools("Input.dispatchMouseEvent", type="mouseReleased", **at)
    assert state(page)["where"] == "step 6 of 9"


def test_a_thumbnail_seeks(page):
    assert page.run("return document.querySelectorAll('#strip img').length") == 10
    click(page, "#strip button:nth-child(8)")
    assert state(page)["where"] == "step 7 of 9"
    assert page.run("return document.querySelector('#strip .here').title") == "img, step 7"


def test_playing_runs_to_the_end_and_stops(page):
    click(page, "#play")
    assert page.run("return document.getElementById('play').textContent") == "Pause"
    page.wait_for("document.getElementById('where').textContent === 'step 9 of 9'")
    page.wait_for("document.getElementById('play').textContent === 'Play'")


def test_normalized_values_lie_between_minus_one_and_one(page):
    click(page, "#normalized")
    values = page.run(
        "return [...document.querySelectorAll('#charts .chart:first-child .key')]"
        ".map(k => Number(k.textContent.split(' ')[1]))"
    )
    assert len(values) == 2
    assert all(-1 <= value <= 1 for value in values)
    labels = page.run(
        "return [...document.querySelectorAll('#charts .chart:first-child .y')]"
        ".map(k => Number(k.textContent))"
    )
    assert labels == [-1, -0.5, 0, 0.5, 1]


def test_the_inspection_fits_a_phone(page):
    set_size(page, 375, 800, mobile=True)
    assert page.run("return document.documentElement.scrollWidth") == 375


def test_the_thumbnail_of_the_step_is_in_sight_on_a_phone(page):
    set_size(page, 375, 800, mobile=True)
    page.wait_for("[...document.querySelectorAll('#strip img')].every(i => i.complete)")
    sides = """
        const [strip, here] = ['#strip', '#strip .here'].map(
          (s) => document.querySelector(s).getBoundingClientRect());
        return [here.left - strip.left, strip.right - here.right];
        """
    top = page.run("return scrollY")
    for step in (9, 0, 5):
        scrub(page, step)
        assert min(page.run(sides)) >= -1, step
    assert page.run("return scrollY") == top


def test_hostile_names_run_nothing(browser, make_data_set, tmp_path):
    name = "</script><img src=x onerror='document.owned = 1'>"

    def change(arrays):
        arrays["x&<b>y"] = arrays.pop("action")

    path = make_data_set(change=change)
    moved = path.rename(tmp_path / name.replace("/", "\N{DIVISION SLASH}"))
    browser.command("/url", url=build_page(summarize(moved), tmp_path / "page.html").as_uri())
    assert browser.run("return document.querySelector('h1').textContent") == moved.name
    assert "x&<b>y" in browser.run("return document.getElementById('charts').textContent")
    assert browser.run("return document.owned ?? null") is None
    assert browser.console() == []
