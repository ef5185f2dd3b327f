"""The page: what it says, that it is safe and self-contained, and what it says when it cannot."""

import base64
import html
import io
import json
import math
import os
import re
import shutil

import av
import pytest
from click.testing import CliRunner
from pages import Document

from diffusion_policy.common.errors import DataError, DiffusionPolicyError
from diffusion_policy.report.__main__ import main
from diffusion_policy.report.build import build_report
from diffusion_policy.report.shell import resource


def build(folder, **kwargs) -> Document:
    return Document(build_report(folder, folder / "report.html", **kwargs).read_text())


def test_the_page_shows_scores_time_config_command_and_checkpoints(make_run):
    folder = make_run()
    (folder / "run_info.json").write_text(
        json.dumps({"seconds": 4980.0, "sessions": 2, "machine": {"cpu": "Abacus 3"}})
    )
    page = build(folder)
    text = " ".join(page.text.split())
    assert "demo run" in text
    assert "train_diffusion_unet_lowdim · pusht_lowdim · seed 42" in text
    assert "Final score 0.625 test/mean_score · epoch 3 · 3 episodes" in text
    assert "Best score 0.625 test/mean_score · epoch 3" in text
    assert "Epochs 4 of 4 · 20 steps" in text
    assert "Training time 1 h 23 min in 2 sessions" in text
    assert "Training loss 0.05 mean of the last full epoch" in text
    assert "Abacus 3" in text
    assert "latest.ckpt 2.5 MB" in text
    assert (
        "python train.py --config-name=demo_pusht '--config-dir=/somewhere/my configs' "
        "training.seed=42 'x=a b' hydra.verbose=true" in text
    )
    for title in ("Score", "Loss", "Action error on a training batch", "Learning rate"):
        assert title in text
    assert len([a for a in page.all("figure") if a.get("class") == "chart"]) == 4


def test_the_configuration_is_there_word_by_word(make_run):
    folder = make_run()
    page = build_report(folder, folder / "report.html").read_text()
    block = re.search(r"<details>.*<pre>(.*)</pre></details>", page, re.DOTALL)
    assert block is not None
    shown = html.unescape(re.sub(r"</?i>", "", block[1]))
    assert shown == (folder / ".hydra" / "config.yaml").read_text()


def test_the_page_asks_the_network_for_nothing(make_run):
    page = build(make_run())
    assert page.urls()
    for url in page.urls():
        assert not re.match(r"[a-z]+:", url) or url.startswith("data:"), url
        assert not url.startswith("//")
    for name in ("report.css", "report.js", "report.html"):
        assert not re.search(r"https?://|@import|url\(", resource("diffusion_policy.report", name))
    policies = [a["content"] for a in page.all("meta") if a.get("http-equiv")]
    assert policies[0].startswith("default-src 'none'")


def test_videos_of_the_newest_evaluation_are_embedded_whole(make_run):
    folder = make_run()
    page = build(folder)
    videos = page.all("video")
    assert [v["aria-label"] for v in videos] == ["rollout test 10000", "rollout test 10001"]
    for video, seed in zip(videos, (10000, 10001), strict=True):
        kind, content = video["src"].split(",")
        assert kind == "data:video/mp4;base64"
        content = base64.b64decode(content, validate=True)
        assert content == (folder / "media" / f"3_{seed}.mp4").read_bytes()
        with av.open(io.BytesIO(content)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 20


def test_videos_beyond_the_limit_are_linked_relative_to_the_page(make_run, tmp_path):
    folder = make_run(n_videos=3)
    output = tmp_path / "elsewhere" / "report.html"
    output.parent.mkdir()
    page = Document(build_report(folder, output, max_videos=1).read_text())
    assert len(page.all("video")) == 1
    links = {a["href"] for a in page.all("a") if a["href"].endswith(".mp4")}
    assert links == {f"../demo%20run/media/3_{seed}.mp4" for seed in (10001, 10002)}


def test_videos_that_are_too_large_together_are_linked(make_run, monkeypatch):
    folder = make_run(n_videos=3)
    size = (folder / "media" / "3_10000.mp4").stat().st_size
    monkeypatch.setattr("diffusion_policy.report.gallery.MAX_VIDEO_BYTES", int(size * 1.5))
    page = build(folder)
    assert len(page.all("video")) == 1
    assert len({a["href"] for a in page.all("a") if a["href"].endswith(".mp4")}) == 2


def test_episodes_are_listed_tests_first_with_their_scores(make_run):
    folder = make_run()
    page = build_report(folder, folder / "report.html").read_text()
    rows = re.findall(r"<tr><td>(test|train)</td><td>(\d+)</td><td data-value=\"([^\"]+)\">", page)
    assert rows == [
        ("test", "10000", "0.75"),
        ("test", "10001", "1.0"),
        ("test", "10002", "0.125"),
        ("train", "0", "0.75"),
    ]


def test_names_are_escaped_everywhere(make_run):
    evil = '<script>alert("x")<'  # a file name cannot hold a slash
    folder = make_run(name=evil)
    os.rename(folder / "checkpoints" / "latest.ckpt", folder / "checkpoints" / f"{evil}.ckpt")
    row = {"global_step": 99, "epoch": 9, f"{evil}/mean_score": 0.5}
    row |= {f"{evil}/sim_max_reward_1": 0.5, "note/x": 1}
    with (folder / "logs.json.txt").open("a") as file:
        file.write(json.dumps(row) + "\n")
    for title in (None, "</title><script>alert(1)</script> ${css} $js"):
        page = build(folder, title=title)
        assert len(page.all("script")) == 1
        assert (title or evil) in page.text


def test_a_run_in_progress_is_shown_as_far_as_it_is(make_run):
    folder = make_run()
    log = folder / "logs.json.txt"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:13]) + '{"train_loss": 0.0')
    text = " ".join(build(folder).text.split())
    assert "Newest score 0.458 test/mean_score · epoch 1" in text
    assert "Epochs 3 of 4 · 13 steps" in text
    assert "Training loss 0.1 mean" in text  # of epoch 1, not the newest batch's


def test_a_run_with_only_a_log_is_a_page(make_run, tmp_path):
    folder = make_run(evaluate=False)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(folder / "logs.json.txt", bare)
    page = build(bare)
    assert "Rollouts" not in page.text
    assert "Episodes" not in page.text
    assert "Configuration" not in page.text
    assert "Reproduce" not in page.text
    assert "Loss" in page.text


def test_an_evaluation_without_videos_has_a_table_only(make_run):
    page = build(make_run(n_videos=0))
    assert page.all("video") == []
    assert "Rollouts" not in page.text
    assert "10002" in page.text


def test_not_a_number_leaves_a_gap_and_not_a_broken_page(make_run):
    folder = make_run(evaluate=False)
    with (folder / "logs.json.txt").open("a") as file:
        file.write('{"train_loss": NaN, "global_step": 20, "epoch": 4, "lr": Infinity}\n')
    page = build_report(folder, folder / "report.html").read_text()
    curves = re.findall(r' d="([^"]*)"', page)
    assert curves
    assert all(re.fullmatch(r"[-\dMLHh ]+", curve) for curve in curves)


def test_reference_logs_make_a_page(golden, tmp_path):
    for source in [*sorted((golden / "j_multirun").iterdir()), golden / "k_checkpoints/bet_lowdim"]:
        page = Document(build_report(source, tmp_path / "report.html").read_text())
        assert "Loss" in page.text


@pytest.fixture
def evaluation(make_run, tmp_path):
    """An output folder of eval.py: path values as written from another working directory."""
    videos = make_run(name="videos")
    folder = tmp_path / "eval"
    (folder / "media").mkdir(parents=True)
    shutil.copy(videos / "media" / "3_10000.mp4", folder / "media" / "abc.mp4")
    log = {
        "test/mean_score": 0.875,
        "test/sim_max_reward_20000": 0.875,
        "test/sim_video_20000": "gone/eval/media/abc.mp4",
        "test/sim_video_20001": "gone/eval/media/missing.mp4",
        "test/sim_video_20002": "/etc/hostname",
    }
    (folder / "eval_log.json").write_text(json.dumps(log))
    return folder


def test_a_separate_evaluation_takes_the_place_of_the_newest_one(make_run, evaluation):
    folder = make_run()
    for where in (evaluation, evaluation / "eval_log.json"):
        page = build(folder, evaluation_dir=where)
        text = " ".join(page.text.split())
        assert "Final score 0.875 test/mean_score · eval.py · 3 episodes" in text
        assert "Best score 0.625" in text
        assert [v["aria-label"] for v in page.all("video")] == ["rollout test 20000"]


def test_an_evaluation_log_in_the_run_folder_is_found(make_run, evaluation):
    folder = make_run()
    shutil.copy(evaluation / "eval_log.json", folder)
    assert "eval.py" in build(folder).text


@pytest.mark.parametrize("content", ["", '{"train_loss": 1.0, "glob'])
def test_a_log_without_a_complete_line_is_one_sentence(tmp_path, content):
    (tmp_path / "logs.json.txt").write_text(content)
    with pytest.raises(DataError, match=r"logs\.json\.txt has no complete line yet; wait for"):
        build_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_log_and_a_missing_folder_are_one_sentence_each(tmp_path):
    with pytest.raises(DataError, match=r"Cannot read the log .*logs\.json\.txt: No such file"):
        build_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(DataError, match="nowhere is not a folder; name the output folder"):
        build_report(tmp_path / "nowhere", tmp_path / "report.html")


def test_a_missing_or_damaged_evaluation_is_one_sentence(make_run, tmp_path):
    folder = make_run()
    with pytest.raises(DataError, match=r"Cannot read .*nowhere"):
        build_report(folder, folder / "report.html", evaluation_dir=tmp_path / "nowhere")
    (tmp_path / "eval_log.json").write_text("{")
    with pytest.raises(DataError, match=r"eval_log\.json is not a JSON object"):
        build_report(folder, folder / "report.html", evaluation_dir=tmp_path)


def test_a_page_that_cannot_be_written_is_one_sentence(make_run, tmp_path):
    folder = make_run(evaluate=False)
    with pytest.raises(DiffusionPolicyError, match=r"Cannot write the report .*nowhere"):
        build_report(folder, tmp_path / "nowhere" / "report.html")


def test_the_command_line_writes_the_page_and_prints_its_path(make_run, tmp_path):
    folder = make_run(evaluate=False)
    output = tmp_path / "r.html"
    result = CliRunner().invoke(main, [str(folder), "-o", str(output), "--title", "My run"])
    assert (result.exit_code, result.output) == (0, f"{output}\n")
    assert "<h1>My run</h1>" in output.read_text()
    result = CliRunner().invoke(main, [str(folder)])
    assert result.output == f"{folder / 'report.html'}\n"


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path):
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: Cannot read the log")
    assert len(result.output.splitlines()) == 1
    assert "--max-videos" in CliRunner().invoke(main, ["--help"]).output


def test_damaged_files_of_hydra_are_one_sentence(make_run):
    folder = make_run(evaluate=False)
    odd = ["other: 1", "- 1", "hydra: 1", "hydra: {overrides: 1}", "hydra: {job: [1]}", "1"]
    odd += [
        "hydra: {job: {config_name: x}, runtime: {config_sources: [1]}, overrides: {hydra: []}}"
    ]
    odd += [
        "hydra: {job: {config_name: x}, runtime: {config_sources: []}, overrides: {hydra: [1]}}"
    ]
    for content in odd:
        (folder / ".hydra" / "hydra.yaml").write_text(content)
        with pytest.raises(DataError, match=r"\.hydra does not have the files that Hydra writes"):
            build_report(folder, folder / "report.html")
    (folder / ".hydra" / "hydra.yaml").write_text("hydra: {")
    with pytest.raises(DataError, match=r"hydra\.yaml is not readable YAML"):
        build_report(folder, folder / "report.html")


def test_a_dangling_hydra_folder_is_none(make_run, tmp_path):
    folder = make_run(evaluate=False)
    shutil.rmtree(folder / ".hydra")
    (folder / ".hydra").symlink_to(tmp_path / "nowhere")
    assert "Configuration" not in build(folder).text


def test_a_hydra_folder_elsewhere_is_one_sentence(make_run):
    folder, other = make_run("a", evaluate=False), make_run("b", evaluate=False)
    shutil.rmtree(folder / ".hydra")
    (folder / ".hydra").symlink_to(other / ".hydra")
    with pytest.raises(DataError, match=r"config\.yaml is a link that leads out of"):
        build_report(folder, folder / "report.html")


ODD_INFO = [
    {"seconds": value, "sessions": value, "machine": value, "memory": {"host_peak_bytes": value}}
    for value in ("x", -1, 10**400, 1e300, math.nan, math.inf, None, [1], {"a": 1}, True, "\ud800")
]


@pytest.mark.parametrize("info", ODD_INFO)
def test_odd_values_of_run_info_are_not_shown(make_run, info):
    folder = make_run(evaluate=False)
    (folder / "run_info.json").write_text(json.dumps(info))
    assert "nan" not in build(folder).text


@pytest.mark.parametrize(
    "content", ["", "[" * 10**5, "[1]", '{"a": 1' + "0" * 5000 + "}", "\0", "é"]
)
def test_what_is_no_json_object_is_one_sentence(make_run, content):
    folder = make_run(evaluate=False)
    for name in ("run_info.json", "eval_log.json"):
        (folder / name).write_text(content, encoding="latin-1")
        with pytest.raises(DataError, match=f"{name} is not a JSON object; restore the file"):
            build_report(folder, folder / "report.html")
        (folder / name).unlink()


def test_odd_numbers_of_an_evaluation_leave_gaps(make_run):
    folder = make_run()
    row = {
        "global_step": 30,
        "epoch": 5,
        "test/mean_score": 0.5,
        "test/words": "x",
        "test/none": None,
    }
    odd = ["x", None, math.nan, math.inf, 10**400, [1], {"a": 1}]
    row |= {f"test/sim_max_reward_{i}": value for i, value in enumerate(odd)}
    row |= {"test/sim_max_reward_" + "9" * 5000: 1.0, "test/sim_max_reward_٣": 1.0}
    row |= {"test/big": 10**400, "test/nan": math.nan}
    with (folder / "logs.json.txt").open("a") as file:
        file.write(json.dumps(row) + "\n")
    text = " ".join(build(folder).text.split())
    assert "test/mean_score 0.5 test/nan nan" in text, text
    assert "test 0 – test 1 – test 2 –" in text


def test_halves_of_characters_are_written_out(make_run):
    folder = make_run(extra='"\\ud800": "\\udfff"\n')
    row = {"global_step": 30, "\ud800/mean_score": 0.5, "\ud800/sim_max_reward_1": 0.5}
    with (folder / "logs.json.txt").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert "\\ud800/mean_score" in build(folder, title="\udcff").text


def test_a_folder_whose_name_is_no_text_has_a_page(make_run, tmp_path):
    folder = make_run(evaluate=False)
    odd = folder.rename(os.path.join(tmp_path, os.fsdecode(b"a\xff")))
    result = CliRunner().invoke(main, [str(odd)])
    assert (result.exit_code, result.exception) == (0, None)
    assert "a\\udcff" in (odd / "report.html").read_text()


@pytest.mark.parametrize("values", [(1e308, -1e308), (5e-324, 1e308), (5e-324, 0), (1e99, 1e-99)])
def test_any_numbers_can_be_drawn(make_run, values):
    folder = make_run(evaluate=False)
    with (folder / "logs.json.txt").open("a") as file:
        for step, value in zip((20, 2**53 - 1), values, strict=True):
            row = dict.fromkeys(["train_loss", "val_loss", "lr", "test/mean_score"], value)
            file.write(json.dumps(row | {"global_step": step}) + "\n")
    page = build_report(folder, folder / "report.html").read_text()
    curves = re.findall(r' d="([^"]*)"', page)
    assert all(re.fullmatch(r"[-\dMLHhZ ]+", curve) for curve in curves)


def test_a_checkpoint_that_has_gone_or_leads_nowhere_is_not_listed(make_run):
    folder = make_run(evaluate=False)
    (folder / "checkpoints" / "a.ckpt").symlink_to("nowhere")
    (folder / "checkpoints" / "b.ckpt").symlink_to("b.ckpt")
    assert [a["href"] for a in build(folder).all("a")] == ["checkpoints/latest.ckpt"]


def test_a_page_is_written_through_no_link(make_run, tmp_path):
    folder = make_run(evaluate=False)
    (tmp_path / "mine").write_text("stays")
    for name in ("report.html", "report.html.partial"):
        (folder / name).symlink_to(tmp_path / "mine")
    build(folder)
    assert (tmp_path / "mine").read_text() == "stays"
    os.mkfifo(folder / "report.html.partial")
    build(folder)
    assert sorted(path.name for path in folder.glob("report*")) == ["report.html"]


def test_a_file_whose_name_is_no_text_is_linked(make_run):
    folder = make_run(evaluate=False)
    path = os.path.join(folder, "checkpoints", os.fsdecode(b"a\xff.ckpt"))
    os.rename(folder / "checkpoints" / "latest.ckpt", path)
    assert [a["href"] for a in build(folder).all("a")] == ["checkpoints/a%FF.ckpt"]


def test_times_of_change_may_be_any(make_run):
    folder = make_run(evaluate=False)
    os.utime(folder / "checkpoints" / "latest.ckpt", (10**15, 10**15))
    os.utime(folder / "logs.json.txt", (-(10**12), -(10**12)))
    build(folder)


def test_a_single_run_has_its_scores_and_where_the_time_went(make_run):
    folder = make_run()
    info = {"seconds": 50, "sessions": 1, "memory": {"host_peak_bytes": 3 * 2**29}}
    (folder / "run_info.json").write_text(json.dumps(info))
    times = [{"epoch": e, "time/step": 2.0, "time/data_wait": 0.5, "time/x": 1} for e in range(4)]
    (folder / "times.json.txt").write_text("".join(json.dumps(row) + "\n" for row in times))
    text = " ".join(build(folder).text.split())
    assert "Last 10 0.500 test/mean_score · mean of 4 evaluations" in text
    assert "test/mean_score 0.625 0.500 4 train/mean_score 0.750 0.750 4" in text
    assert "time 50 s sessions 1 per training step 400 ms peak memory 1.50 GiB" in text
    assert "training steps 8.0 s 57.1 % x 4.0 s 28.6 % waiting for data 2.0 s 14.3 %" in text


def test_the_command_of_a_job_of_a_multirun_is_that_of_the_job_alone(make_run):
    folder = make_run(evaluate=False)
    hydra = (folder / ".hydra" / "hydra.yaml").read_text()
    multirun = "'hydra.sweep.dir=m', 'hydra/launcher=joblib', 'hydra.launcher.n_jobs=2', "
    hydra = hydra.replace("hydra: [", f"hydra: [{multirun}'hydra.job.name=train', ")
    (folder / ".hydra" / "hydra.yaml").write_text(hydra)
    text = " ".join(build(folder).text.split())
    assert "training.seed=42 'x=a b' hydra.verbose=true Configuration" in text
