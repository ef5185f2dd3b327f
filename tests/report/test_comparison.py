"""The page about several runs: what it says, and that nothing in a run can harm it."""

import json
import os
import re

import pytest
from click.testing import CliRunner
from pages import Document

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.report.__main__ import main
from diffusion_policy.report.build import build_report


@pytest.fixture
def build(tmp_path):
    def build(*folders, **kwargs) -> tuple[Document, str]:
        page = build_report(folders, tmp_path / "report.html", **kwargs).read_text()
        document = Document(page)
        return document, " ".join(document.text.split())

    return build


@pytest.fixture
def two_methods(make_sweep):
    """Scores of the last epoch 0.625 and 0.655, against 0.725 and 0.755; two videos each."""
    return (
        make_sweep("plain"),
        make_sweep("better", shift=0.3, extra="optimizer: {lr: 0.5}\n", n_videos=1),
    )


def rows(document_text: str, part: str) -> list[list[str]]:
    """Cells of the tables of a part, tags removed."""
    html = re.search(
        rf'<div data-part="{part}"(.*?)(?=<div data-part=|</main>)', document_text, re.S
    )
    assert html is not None
    found = re.findall(r"<tr>(.*?)</tr>", html[1], re.S)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in found]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in cells]


def test_the_scores_of_the_methods_are_those_of_the_papers_tables(two_methods, build, tmp_path):
    build(*two_methods)
    header, plain, better, *seeds = rows((tmp_path / "report.html").read_text(), "scores")
    assert header == [
        "Method",
        "Seeds",
        *("test/mean_score max", "test/mean_score last\N{NO-BREAK SPACE}10"),
        *("train/mean_score max", "train/mean_score last\N{NO-BREAK SPACE}10"),
        "Evaluations",
    ]
    assert plain == ["plain", "2", "0.640 ± 0.021", "0.515 ± 0.021", "0.750 ± 0.000"] + [
        "0.750 ± 0.000",
        "4",
    ]
    assert better[:4] == ["better", "2", "0.740 ± 0.021", "0.615 ± 0.021"]
    assert seeds[1][:5] == ["plain", "plain/train_0", "42", "0.625", "0.500"]
    assert seeds[4][:5] == ["better", "better/train_1", "43", "0.755", "0.630"]


def test_the_page_says_what_is_compared(two_methods, build):
    page, text = build(*two_methods)
    assert "<h1>plain, better" in (two_methods[0].parent / "report.html").read_text()
    assert "train_diffusion_unet_lowdim · pusht_lowdim · 2 methods · 4 runs" in text
    assert "Best method, max 0.740 test/mean_score · better · 2 seeds" in text
    assert "Runs finished 4 of 4 all of them" in text
    assert "line: mean over seeds, band: smallest to largest seed" in text
    assert "dashed" not in text
    assert "plain (2 seeds)" in text
    labels = [a["data-label"] for a in page.all("path") if a.get("class", "").startswith("band")]
    assert labels.count("plain") == labels.count("better") == 6


def test_settings_that_differ_are_listed(two_methods, build, tmp_path):
    build(*two_methods)
    assert rows((tmp_path / "report.html").read_text(), "differences") == [
        ["Setting", "plain", "better"],
        ["optimizer.lr", "–", "0.5"],
    ]


def test_long_values_are_shortened_and_whole_in_the_title(make_sweep, build):
    one = make_sweep("one", seeds=[1], evaluate=False, extra=f"zarr: {'a' * 90}\n")
    two = make_sweep("two", seeds=[1], evaluate=False, extra=f"zarr: {'b' * 90}\n")
    page, text = build(one, two)
    assert "a" * 39 + "…" in text
    assert {"title": "a" * 90} in page.all("td")


def test_the_same_configuration_twice_has_no_differences(make_sweep, build):
    _, text = build(make_sweep("one", evaluate=False), make_sweep("two", evaluate=False))
    assert "The configurations are the same." in text


def test_videos_of_the_best_seed_of_every_method_take_turns(two_methods, build):
    page, text = build(*two_methods)
    assert [v["aria-label"] for v in page.all("video")] == [
        *("rollout test 10000", "rollout test 10001"),
        "rollout test 10000",
    ]
    assert text.count("seed 43, epoch 3") == 2
    assert len({figure["id"] for figure in page.all("figure") if "id" in figure}) == 3
    page, text = build(*two_methods, max_videos=2)
    assert [v["aria-label"] for v in page.all("video")] == ["rollout test 10000"] * 2
    links = {a["href"] for a in page.all("a")}
    assert links == {"plain/train_1/media/3_10001.mp4"}


def test_seeds_in_progress_waiting_failed_and_damaged_are_named(make_sweep, write_status, build):
    sweep = make_sweep("sweep", seeds=range(4), n_videos=0)
    log = sweep / "train_1" / "logs.json.txt"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:12]) + lines[12][:9])  # in its third epoch
    (sweep / "train_2" / "logs.json.txt").unlink()
    log.write_text("".join([*lines[:3], "oops\n", *lines[3:12]]) + lines[12][:9])
    (sweep / "train_3" / "run_info.json").write_text("oops")
    (sweep / "train_4").mkdir()
    write_status(sweep, train_0="finished", train_1="failed", train_2="waiting", train_3="running")
    _, text = build(sweep)
    assert "1 method · 5 runs" in text
    assert "Runs finished 1 of 5" in text
    assert "failed on node-7, attempt 2, exit code -9" in text
    assert "Line 4 of" in text
    assert "train_3/run_info.json is not a JSON object" in text
    assert text.count("unreadable") == 2
    assert len(re.findall(r"\bwaiting\b", text)) == 3
    assert "dashed: not all seeds are that far" in text
    assert "sweep (2 seeds)" in text
    page = (sweep.parent / "report.html").read_text()
    table = rows(page, "runs")
    assert [row[4] for row in table[1:]] == ["4 of 4", "3 of 4", "–", "–", "–"]
    assert rows(page, "scores")[1][6] == "4, 2"
    assert 'title="of 2 evaluations so far"' in page


def test_a_sweep_in_which_nothing_has_begun_is_a_page(tmp_path, build, write_status):
    (tmp_path / "sweep" / "train_0").mkdir(parents=True)
    write_status(tmp_path / "sweep", train_0="waiting")
    _, text = build(tmp_path / "sweep")
    assert "Runs finished 0 of 1 1 waiting" in text
    for missing in ("Scores", "Curves", "Rollouts", "Differences", "Resource", "Machine"):
        assert missing not in text


def test_hydras_multirun_is_grouped_by_its_settings(make_run, build):
    for job, (seed, lr) in enumerate([(1, 0.1), (2, 0.1), (1, 0.2), (2, 0.2)]):
        make_run(f"multi/{job}", seed=seed, evaluate=False, extra=f"optimizer: {{lr: {lr}}}\n")
    folder = make_run("multi/4", seed=1, evaluate=False, extra="optimizer: {lr: 0.3}\n").parent
    _, text = build(folder)
    assert "3 methods · 5 runs" in text
    assert "lr=0.1 (2 seeds) lr=0.2 (2 seeds) lr=0.3 (1 seed)" in text


def test_time_memory_and_machines_of_all_runs(two_methods, build, tmp_path):
    for i, folder in enumerate(sorted(tmp_path.glob("*/train_*"))):
        memory = {"host_peak_bytes": 2**30 * (i + 1), "device_peak_bytes": 2**31}
        info = {"seconds": 60.0 * (i + 2), "sessions": i + 1, "machine": {"cpu": f"Abacus {i % 2}"}}
        (folder / "run_info.json").write_text(json.dumps(info | {"memory": memory}))
        times = [{"epoch": 0, "time/step": 1.0, "time/rollout": 3.0}]
        (folder / "times.json.txt").write_text("".join(json.dumps(row) + "\n" for row in times))
    page, text = build(*two_methods)
    assert "Training time 14 min of 4 runs" in text
    table = rows((tmp_path / "report.html").read_text(), "resources")
    assert table[0] == ["Run", "Time", "Sessions", "Per step", "Where the time went"] + [
        "Peak memory",
        "Peak GPU memory",
    ]
    assert table[3] == ["better/train_0", "2 min", "1", "200 ms", "", "1.00 GiB", "2.00 GiB"]
    assert {"class": "c3", "style": "width:75.00%", "title": "rollouts: 3.0 s"} in page.all("span")
    assert "Machines cpu Abacus 0 runs plain/train_0, better/train_0 cpu Abacus 1" in text


def test_hostile_names_settings_and_logs_stay_text(make_run, build, tmp_path):
    evil = "\"><script>alert(1)<x onerror='alert(2)'>"
    hostile = json.dumps(f"</td></script>{evil}")
    for i, name in enumerate((f"{evil}/train_0", "b/train_0")):
        folder = make_run(name, extra=f"note2: {hostile}\nother: '{i}'\n{json.dumps(evil)}: {i}\n")
        row = {"global_step": 99, "epoch": 9, f"{evil}/mean_score": 0.5 + i}
        row |= {f"{evil}/sim_max_reward_1": 0.5}
        with (folder / "logs.json.txt").open("a") as file:
            file.write(json.dumps(row) + "\n")
        (folder / "run_info.json").write_text(json.dumps({"machine": {evil: evil}}))
        (folder / "times.json.txt").write_text(json.dumps({"epoch": 0, f"time/{evil}": 1.0}) + "\n")
    status = {"tasks": {"train_0": {"state": "failed", "host": evil, "exit_code": evil}}}
    (tmp_path / "b" / "status.json").write_text(json.dumps(status))
    page, _ = build(tmp_path / evil, tmp_path / "b")
    assert len(page.all("script")) == 1
    assert not [tag for tag, attributes in page.elements if "onerror" in attributes or tag == "x"]
    assert evil in page.text
    page, _ = build(tmp_path / evil / "train_0")
    assert len(page.all("script")) == 1
    assert not [tag for tag, attributes in page.elements if "onerror" in attributes or tag == "x"]


def test_an_evaluation_goes_with_a_single_run(two_methods, tmp_path):
    with pytest.raises(ConfigError, match="with a single run, and here are 4; name that run alone"):
        build_report(two_methods, tmp_path / "r.html", evaluation_dir=tmp_path)


def test_nothing_that_is_a_run_is_one_sentence_and_no_page(make_sweep, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no folder in there is a run either"):
        build_report([make_sweep("a"), tmp_path / "empty"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_reference_logs_make_a_comparison(golden, tmp_path):
    path = build_report(golden / "j_multirun", tmp_path / "report.html")
    assert "band c1" in path.read_text()


def test_the_command_line_wants_a_page_for_several_folders(two_methods, tmp_path):
    folders = [str(folder) for folder in two_methods]
    result = CliRunner().invoke(main, folders)
    assert result.exit_code == 2
    assert "name the page with -o when there are several folders" in result.output
    output = tmp_path / "r.html"
    result = CliRunner().invoke(main, [*folders, "-o", str(output), "--title", "Mine"])
    assert (result.exit_code, result.output) == (0, f"{output}\n")
    result = CliRunner().invoke(main, folders[:1])
    assert os.path.exists(two_methods[0] / "report.html")
