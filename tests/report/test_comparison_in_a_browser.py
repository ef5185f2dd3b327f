"""A comparison in a real browser, from a file and served while the runs go on."""

import json
import signal

import pytest
from browser import needs_browser

from diffusion_policy.report.build import build_report

pytestmark = needs_browser


@pytest.fixture
def sweeps(make_sweep):
    return (
        make_sweep("plain"),
        make_sweep("better", shift=0.3, extra="optimizer: {lr: 0.5}\n", n_videos=1),
    )


@pytest.fixture
def comparison(sweeps, tmp_path):
    return build_report(sweeps, tmp_path / "report.html").as_uri()


SCORES = "document.querySelector('[data-part=scores] table')"
FIRST_SCORE = f"Number({SCORES}.tBodies[0].rows[0].cells[2].dataset.value)"


def test_videos_of_all_methods_play_and_nothing_is_logged(show, comparison):
    page = show(comparison)
    page.wait_for("document.querySelectorAll('video').length === 3")
    page.run("document.querySelector('[data-part=rollouts]').scrollIntoView()")
    page.wait_for("[...document.querySelectorAll('video')].every(v => v.currentTime > 0.1)")
    page.run("document.getElementById('play-all').click()")
    page.wait_for("[...document.querySelectorAll('video')].every(v => v.paused)")


def test_the_score_table_sorts_both_ways(show, comparison):
    page = show(comparison)
    for expected in (0.64, 0.74):
        page.run(f"{SCORES}.tHead.querySelectorAll('button')[2].click()")
        assert page.run(f"return {FIRST_SCORE}") == pytest.approx(expected)


def test_a_chart_tells_means_ranges_and_missing_seeds(show, read_tip, sweeps, comparison, tmp_path):
    log = sweeps[1] / "train_1" / "logs.json.txt"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:15]))  # an epoch less
    page = show(build_report(sweeps, tmp_path / "report.html").as_uri())
    assert read_tip(page) == [
        "step 19",
        "plain 0.6400 (0.6250 to 0.6550)",
        "better 0.7250 (0.7250 to 0.7250, 1 of 2 seeds)",
    ]
    # From the left of step 14, the last one that both have.
    assert read_tip(page, at=0.72)[2] == "better 0.6567 (0.6417 to 0.6717)"


def test_the_comparison_fits_a_phone_with_its_tips(show, read_tip, comparison):
    page = show(comparison, width=375, height=800, mobile=True)
    assert page.run("return document.documentElement.scrollWidth") == 375
    assert len(read_tip(page)) == 3
    left, right = page.run(
        "const r = document.querySelector('.tip').getBoundingClientRect(); return [r.left, r.right]"
    )
    assert left >= 0
    assert right <= 375


def test_a_served_page_follows_the_runs_and_leaves_the_rest_alone(show, serve, sweeps):
    with serve(sweeps) as (process, address):
        page = show(address, height=700)
        page.wait_for("document.querySelector('.live').textContent.startsWith('live · as of')")
        page.run(
            f"{SCORES}.tHead.querySelectorAll('button')[2].click();"
            f"{SCORES}.tHead.querySelectorAll('button')[2].click();"
            "document.querySelector('[data-part=scores] details').open = true;"
            "const videos = document.querySelector('[data-part=rollouts]');"
            "videos.mark = 'the same'; videos.scrollIntoView()"
        )
        page.wait_for("document.querySelector('video').currentTime > 0.1")
        top = "document.querySelector('[data-part=rollouts]').getBoundingClientRect().top"
        before = page.run(f"return {top}")
        # Of the seed whose videos are not shown: they play on. More rows above keep them in place.
        row = {"train_loss": 0.5, "epoch": 6, "global_step": 34, "test/mean_score": 0.7}
        with (sweeps[0] / "train_0" / "logs.json.txt").open("a") as file:
            file.write(json.dumps(row | {"new/mean_score": 0.5}) + "\n")
        page.wait_for("document.querySelector('.charts').textContent.includes('new/mean_score')")
        assert page.run("return document.querySelector('[data-part=rollouts]').mark") == "the same"
        assert page.run(f"return {top}") == pytest.approx(before, abs=1)
        assert page.run("return [...document.querySelectorAll('video')].some(v => !v.paused)")
        assert page.run(f"return {FIRST_SCORE}") == pytest.approx(0.74)
        heading = f"{SCORES}.tHead.rows[0].cells[2]"
        assert page.run(f"return {heading}.getAttribute('aria-sort')") == "descending"
        assert page.run("return document.querySelector('[data-part=scores] details').open")
        assert page.console() == []
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        page.wait_for("document.querySelector('.live').classList.contains('lost')")
        assert all("ERR_CONNECTION_REFUSED" in message for message in page.console())
        page.command("/url", url="about:blank")


def test_a_served_run_begins_before_the_eyes_of_the_reader(show, serve, make_run):
    folder = make_run(evaluate=False)
    log = (folder / "logs.json.txt").read_text()
    (folder / "logs.json.txt").unlink()
    with serve([folder]) as (_, address):
        page = show(address)
        assert "no record yet" in page.run("return document.querySelector('main').innerText")
        (folder / "logs.json.txt").write_text(log)
        page.wait_for("document.querySelectorAll('.chart').length === 3")
        assert "no record yet" not in page.run("return document.querySelector('main').innerText")
        assert page.run("return document.querySelectorAll('.cursor').length") == 3
        page.command("/url", url="about:blank")
