"""The page in a real browser: no errors, videos play, tables sort, charts answer the pointer."""

import pytest
from browser import needs_browser

from diffusion_policy.report.build import build_report

pytestmark = needs_browser


@pytest.fixture
def page(show, make_run):
    """The browser showing the report of a run."""
    folder = make_run()
    return show(build_report(folder, folder / "report.html").as_uri())


def test_videos_play_in_the_page_and_a_button_stops_them(page):
    page.wait_for("document.querySelectorAll('video').length === 2")
    page.wait_for("[...document.querySelectorAll('video')].every(v => v.readyState === 4)")
    page.wait_for("[...document.querySelectorAll('video')].every(v => v.currentTime > 0.1)")
    assert page.run("return document.querySelector('video').videoWidth") == 64
    page.run("document.getElementById('play-all').click()")
    page.wait_for("[...document.querySelectorAll('video')].every(v => v.paused)")
    page.run("document.querySelector('video').click()")
    page.wait_for("!document.querySelector('video').paused")


def test_the_episode_table_sorts_by_number_both_ways(page):
    def scores_after_a_click() -> list[float]:
        page.run(
            "document.querySelectorAll('table')[0].tHead.querySelectorAll('button')[2].click()"
        )
        return page.run(
            "return [...document.querySelectorAll('table')[0].tBodies[0].rows]"
            ".map(row => Number(row.cells[2].dataset.value))"
        )

    assert scores_after_a_click() == [0.125, 0.75, 0.75, 1.0]
    assert scores_after_a_click() == [1.0, 0.75, 0.75, 0.125]


def test_a_chart_tells_the_values_under_the_pointer(page, read_tip):
    assert read_tip(page) == ["step 19", "test/mean_score 0.6250", "train/mean_score 0.7500"]


def test_the_page_fits_a_phone(show, make_run):
    folder = make_run()
    path = build_report(folder, folder / "report.html")
    page = show(path.as_uri(), width=375, height=800, mobile=True)
    assert page.run("return document.documentElement.scrollWidth") == 375
    assert page.run("return document.querySelector('.plot .y').getBoundingClientRect().left") > 0


def test_dark_mode_is_dark(page):
    def background(scheme: str) -> str:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.devtools("Emulation.setEmulatedMedia", features=[feature])
        return page.run("return getComputedStyle(document.body).backgroundColor")

    assert background("light") == "rgb(250, 250, 248)"
    assert background("dark") == "rgb(20, 23, 26)"


def test_a_hostile_title_runs_nothing(show, make_run):
    folder = make_run(evaluate=False)
    title = "</title><script>document.owned = 1</script><img src=x onerror='document.owned = 1'>"
    page = show(build_report(folder, folder / "report.html", title=title).as_uri())
    assert page.run("return document.querySelector('h1').textContent") == title
    assert page.run("return document.owned ?? null") is None


def test_a_script_that_is_not_ours_does_not_run_even_if_it_gets_into_the_page(browser, make_run):
    folder = make_run(evaluate=False)
    path = build_report(folder, folder / "report.html")
    path.write_text(path.read_text().replace("<main>", "<main><script>owned = 1</script>"))
    browser.command("/url", url=path.as_uri())
    assert browser.run("return window.owned ?? null") is None
    assert any("Content Security Policy" in message for message in browser.console())
