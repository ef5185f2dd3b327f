"""Where the numbers of a run go, and which failures may stop it (the log) or may not (all else)."""

import json
import os
import pty
import subprocess
import sys
import textwrap
import types

import pytest
from omegaconf import OmegaConf
from runs import read_lines, read_log

from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError
from diffusion_policy.common.media import VideoFile
from diffusion_policy.workspace.run_logger import RunInfoTracker, RunLogger

PUBLISHED = OmegaConf.create(
    {
        "project": "diffusion_policy_debug",
        "resume": True,
        "mode": "online",
        "name": "2023.01.16-20.20.06_train_diffusion_unet_hybrid_pusht_image",
        "tags": ["train_diffusion_unet_hybrid", "pusht_image", "default"],
        "id": None,
        "group": None,
    }
)
DISABLED = {"mode": "disabled"}


class FakeRun:
    starting_step = 0

    def __init__(self):
        self.logged = []
        self.config = types.SimpleNamespace(update=lambda *args, **kwargs: None)
        self.exit_code = None
        self.broken = False

    def log(self, values, step):
        if self.broken:
            raise ConnectionResetError(104, "Connection reset by peer")
        self.logged.append((step, values))

    def finish(self, exit_code):
        if self.broken:
            raise ConnectionResetError(104, "Connection reset by peer")
        self.exit_code = exit_code


class FakeWandb(types.ModuleType):
    """The part of wandb's interface that we use; ``online_error`` is what going online raises."""

    def __init__(self):
        super().__init__("wandb")
        self.calls = []
        self.runs = []
        self.online_error = self.offline_error = None
        self.n_teardowns = 0

    def init(self, project=None, resume=None, mode=None, name=None, tags=None, id=None,
             group=None, dir=None, config=None, settings=None):  # fmt: skip
        self.calls.append({k: v for k, v in locals().items() if k not in ("self", "settings")})
        error = self.online_error if mode == "online" else self.offline_error
        if error is not None:
            raise error
        self.runs.append(FakeRun())
        return self.runs[-1]

    def teardown(self):
        self.n_teardowns += 1

    def Settings(self, **kwargs):
        return kwargs

    def Video(self, path, format):
        return ("video", path, format)


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return fake


def test_disabled_writes_the_log_and_never_imports_wandb(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    with RunLogger(tmp_path, DISABLED, {}) as logger:
        logger.log({"train_loss": 0.5, "global_step": 0, "epoch": 0, "text": "x"}, step=0)
    assert read_log(tmp_path) == [{"train_loss": 0.5, "global_step": 0, "epoch": 0}]


def test_the_environment_variable_wandb_mode_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with RunLogger(tmp_path, PUBLISHED, {}) as logger:
        logger.log({"global_step": 0}, step=0)


def test_without_a_logging_block_there_is_only_the_log(tmp_path, wandb):
    with RunLogger(tmp_path, None, {}) as logger:
        logger.log({"global_step": 0}, step=0)
    assert not wandb.calls
    assert len(read_log(tmp_path)) == 1


def test_the_published_block_reaches_wandb_init(tmp_path, wandb):
    config = OmegaConf.create({"horizon": 16, "twice": "${horizon}"})
    with RunLogger(tmp_path, PUBLISHED, config) as logger:
        logger.log({"train_loss": 0.5, "global_step": 3}, step=3)
    (call,) = wandb.calls
    assert call.pop("dir") == str(tmp_path)
    assert call.pop("config") == {"horizon": 16, "twice": 16}
    run_id = call.pop("id")
    assert run_id == (tmp_path / "wandb_run_id.txt").read_text().strip()
    assert call == {
        "project": "diffusion_policy_debug",
        "resume": "allow",
        "mode": "online",
        "name": PUBLISHED.name,
        "tags": list(PUBLISHED.tags),
        "group": None,
    }
    (run,) = wandb.runs
    assert run.logged == [(3, {"train_loss": 0.5, "global_step": 3})]
    assert run.exit_code == 0


def test_every_session_of_an_output_folder_is_the_same_wandb_run(tmp_path, wandb):
    for _ in range(2):
        with RunLogger(tmp_path, PUBLISHED, {}):
            pass
    first, second = wandb.calls
    assert first["id"] == second["id"]
    other = tmp_path / "other"
    other.mkdir()
    with RunLogger(other, PUBLISHED, {}):
        pass
    assert wandb.calls[2]["id"] != first["id"]


def test_a_configured_id_is_used_and_without_resume_there_is_none(tmp_path, wandb):
    with RunLogger(tmp_path, {**PUBLISHED, "id": "abc"}, {}):
        pass
    with RunLogger(tmp_path, {**PUBLISHED, "resume": False}, {}):
        pass
    assert [(call["id"], call["resume"]) for call in wandb.calls] == [
        ("abc", "allow"),
        (None, False),
    ]


def test_online_without_login_goes_offline_with_one_warning_and_the_same_id(
    tmp_path, wandb, caplog
):
    wandb.online_error = RuntimeError("No API key configured. Use `wandb login` to log in.\nmore")
    with RunLogger(tmp_path, PUBLISHED, {}) as logger:
        logger.log({"train_loss": 0.5}, step=0)
    assert [call["mode"] for call in wandb.calls] == ["online", "offline"]
    assert wandb.calls[0]["id"] == wandb.calls[1]["id"]
    assert wandb.n_teardowns == 1
    assert wandb.runs[0].logged == [(0, {"train_loss": 0.5})]
    (warning,) = caplog.messages
    assert "No API key configured" in warning
    assert "Run `wandb login` once" in warning
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in warning
    assert "\n" not in warning


def test_wandb_that_cannot_start_at_all_is_one_warning(tmp_path, wandb, caplog):
    wandb.online_error = wandb.offline_error = OSError(28, "No space left on device")
    with RunLogger(tmp_path, PUBLISHED, {}) as logger:
        logger.log({"train_loss": 0.5}, step=0)
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.text
    assert read_log(tmp_path) == [{"train_loss": 0.5}]


def test_wandb_that_dies_is_switched_off_with_one_warning(tmp_path, wandb, caplog):
    with RunLogger(tmp_path, PUBLISHED, {}) as logger:
        logger.log({"global_step": 0}, step=0)
        wandb.runs[0].broken = True
        for step in range(1, 4):
            logger.log({"global_step": step}, step=step)
    assert len(caplog.messages) == 1
    assert "wandb failed" in caplog.text
    assert "Connection reset by peer" in caplog.text
    assert [row["global_step"] for row in read_log(tmp_path)] == [0, 1, 2, 3]


def test_steps_that_wandb_has_already_are_not_sent_again(tmp_path, wandb, monkeypatch):
    monkeypatch.setattr(FakeRun, "starting_step", 5)
    with RunLogger(tmp_path, PUBLISHED, {}) as logger:
        for step in range(3, 7):
            logger.log({"global_step": step}, step=step)
    assert [step for step, _ in wandb.runs[0].logged] == [5, 6]
    assert len(read_log(tmp_path)) == 4


def test_a_run_that_raises_is_reported_to_wandb_as_failed(tmp_path, wandb):
    with pytest.raises(KeyError), RunLogger(tmp_path, PUBLISHED, {}):
        raise KeyError("bug")
    assert wandb.runs[0].exit_code == 1


@pytest.mark.parametrize("bad_key", ["tensorbord", "wandb"])
def test_an_unknown_key_of_the_logging_block_is_named(tmp_path, wandb, bad_key):
    with pytest.raises(ConfigError, match=f"has {bad_key}, which wandb.init does not know"):
        RunLogger(tmp_path, {**PUBLISHED, bad_key: 1}, {}).__enter__()


def test_an_unknown_mode_is_named(tmp_path, wandb):
    with pytest.raises(ConfigError, match=r"logging\.mode is 'offlin'; it can be online, offline"):
        RunLogger(tmp_path, {"mode": "offlin"}, {}).__enter__()


def test_videos_go_to_wandb_and_to_the_media_list(tmp_path, wandb):
    video = tmp_path / "media" / "abc.mp4"
    record = {
        "global_step": 7,
        "epoch": 1,
        "test/mean_score": 0.5,
        "test/sim_video_10000": VideoFile(str(video)),
        "test/sim_video_10001": VideoFile("/elsewhere/x.mp4"),
    }
    with RunLogger(tmp_path, PUBLISHED, {}) as logger:
        logger.log({"global_step": 6}, step=6)
        logger.log(record, step=7)
    assert read_lines(tmp_path / "media.json.txt") == [
        {
            "global_step": 7,
            "epoch": 1,
            "test/sim_video_10000": "media/abc.mp4",
            "test/sim_video_10001": "/elsewhere/x.mp4",
        }
    ]
    _, values = wandb.runs[0].logged[1]
    assert values["test/sim_video_10000"] == ("video", str(video), "mp4")
    assert read_log(tmp_path)[1] == {
        "global_step": 7,
        "epoch": 1,
        "test/mean_score": 0.5,
    }


def test_the_media_list_is_relative_also_when_the_run_folder_is_given_relative(
    tmp_path, monkeypatch
):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    with RunLogger("run", DISABLED, {}) as logger:
        logger.log({"global_step": 0, "test/sim_video_1": VideoFile("run/media/a.mp4")}, step=0)
    assert read_lines(tmp_path / "run" / "media.json.txt")[0]["test/sim_video_1"] == "media/a.mp4"


def test_resuming_from_a_checkpoint_leaves_no_duplicates_and_no_holes(tmp_path):
    uninterrupted = tmp_path / "a"
    resumed = tmp_path / "b"
    for folder in (uninterrupted, resumed):
        folder.mkdir()

    def train(logger, steps):
        for step in steps:
            logger.log({"train_loss": 1 / (step + 1), "global_step": step}, step=step)

    with RunLogger(uninterrupted, DISABLED, {}) as logger:
        train(logger, range(6))
    with RunLogger(resumed, DISABLED, {}) as logger:
        train(logger, range(3))
        size = logger.sync()
        train(logger, range(3, 5))
    with (resumed / "logs.json.txt").open("a") as file:
        file.write('{"train_l')  # killed here
    with RunLogger(resumed, DISABLED, {}, resume_bytes=size) as logger:
        assert logger.get_last_log()["global_step"] == 2
        train(logger, range(3, 6))
    assert (resumed / "logs.json.txt").read_bytes() == (
        uninterrupted / "logs.json.txt"
    ).read_bytes()


def test_without_resume_bytes_a_log_is_continued(tmp_path):
    for step in range(2):
        with RunLogger(tmp_path, DISABLED, {}) as logger:
            logger.log({"global_step": step}, step=step)
    assert [row["global_step"] for row in read_log(tmp_path)] == [0, 1]


def test_a_new_log_moves_the_old_ones_aside(tmp_path, caplog):
    for step in range(3):
        with RunLogger(tmp_path, DISABLED, {}, resume_bytes=0) as logger:
            logger.log({"global_step": step}, step=step)
    logs = ["logs.json.txt.1", "logs.json.txt.2", "logs.json.txt"]
    assert [read_lines(tmp_path / name) for name in logs] == [
        [{"global_step": i}] for i in range(3)
    ]
    assert "the old log is kept as" in caplog.text
    assert "logs.json.txt.2" in caplog.text


def test_an_empty_log_is_not_worth_keeping(tmp_path, caplog):
    (tmp_path / "logs.json.txt").touch()
    with RunLogger(tmp_path, DISABLED, {}, resume_bytes=0):
        pass
    assert not list(tmp_path.glob("logs.json.txt.*"))
    assert not caplog.records


def test_a_log_that_cannot_be_written_stops_the_run(tmp_path):
    with pytest.raises(
        DiffusionPolicyError, match=r"Cannot write the training log .*logs.json.txt"
    ):
        RunLogger(tmp_path / "missing", DISABLED, {}).__enter__()
    (tmp_path / "logs.json.txt").symlink_to("/dev/full")
    with (
        pytest.raises(DiffusionPolicyError, match=r"No space left on device \(errno 28\); free"),
        RunLogger(tmp_path, DISABLED, {}) as logger,
    ):
        logger.log({"global_step": 0}, step=0)


def test_run_info_adds_up_the_time_of_all_sessions(tmp_path, monkeypatch):
    clock = iter([100.0, 160.0, 5000.0, 5030.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    RunInfoTracker(tmp_path).close(0)
    first = json.loads((tmp_path / "run_info.json").read_text())
    RunInfoTracker(tmp_path).close(0)
    second = json.loads((tmp_path / "run_info.json").read_text())
    assert (first["seconds"], first["sessions"]) == (60.0, 1)
    assert (second["seconds"], second["sessions"]) == (90.0, 2)
    assert first["started"] == second["started"]
    assert "cores" in second["machine"]["cpu"]


def test_run_info_is_there_while_the_run_is_in_progress(tmp_path):
    with RunLogger(tmp_path, DISABLED, {}) as logger:
        logger.log({"global_step": 0}, step=0)
        assert json.loads((tmp_path / "run_info.json").read_text())["sessions"] == 1


def test_run_info_holds_the_peak_memory(tmp_path):
    RunInfoTracker(tmp_path).close(0)
    memory = json.loads((tmp_path / "run_info.json").read_text())["memory"]
    assert memory["host_peak_bytes"] > 50e6  # this process, which has imported torch


def test_times_go_to_the_followers_only(tmp_path):
    with RunLogger(tmp_path, None, {}) as logger:
        logger.log({"train_loss": 0.5, "global_step": 7, "epoch": 1}, step=7)
        logger.log_times({"global_step": 7, "epoch": 1, "time/step": 2.5}, step=7)
    assert json.loads((tmp_path / "times.json.txt").read_text()) == {
        "global_step": 7,
        "epoch": 1,
        "time/step": 2.5,
    }
    assert "time" not in (tmp_path / "logs.json.txt").read_text()


def test_damaged_run_info_starts_over(tmp_path):
    (tmp_path / "run_info.json").write_text('{"started": ')
    RunInfoTracker(tmp_path).close(0)
    assert json.loads((tmp_path / "run_info.json").read_text())["sessions"] == 1


def test_tensorboard_gets_the_numbers_and_hides_repeated_steps(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {**DISABLED, "tensorboard": True}
    with RunLogger(tmp_path, options, {}) as logger:
        for step in range(3):
            logger.log({"train_loss": float(step), "global_step": step, "text": "x"}, step=step)
            if step == 1:
                size = logger.sync()
    with RunLogger(tmp_path, options, {}, resume_bytes=size) as logger:
        for step in range(2, 4):
            logger.log({"train_loss": 10.0 + step, "global_step": step}, step=step)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train_loss", "global_step"]
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [
        (0, 0.0),
        (1, 1.0),
        (2, 12.0),
        (3, 13.0),
    ]


def test_tensorboard_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        RunLogger(tmp_path, {**DISABLED, "tensorboard": True}, {}).__enter__()


REAL_WANDB = textwrap.dedent("""
    import logging, pathlib, sys
    import psutil
    from diffusion_policy.workspace.run_logger import RunLogger

    logging.basicConfig(format="OURS %(levelname)s %(message)s")
    options = {"project": "p", "resume": True, "mode": "online", "name": "n", "tags": ["a"],
               "id": None, "group": None}
    with RunLogger(sys.argv[1], options, {"horizon": 16}) as logger:
        logger.log({"train_loss": 0.5, "global_step": 0}, step=0)
        for child in psutil.Process().children(recursive=True):
            child.kill()
            child.wait(10)
        for step in range(1, 4):
            logger.log({"train_loss": 0.5, "global_step": step}, step=step)
    print("reached the end")
""")


def test_real_wandb_never_asks_goes_offline_and_may_be_killed(tmp_path):
    """On a terminal, without a login: the situation in which wandb would wait for an answer."""
    pytest.importorskip("wandb")
    run_dir, home = tmp_path / "run", tmp_path / "home"
    run_dir.mkdir()
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"HOME": str(home), "NETRC": str(home / ".netrc"), "TERM": "xterm"}
    master, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", REAL_WANDB, str(run_dir)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
        )
        os.close(terminal)
        output = _read_until_closed(master)
        assert process.wait(60) == 0, output
    finally:
        os.close(master)
    assert "reached the end" in output
    ours = [line for line in output.splitlines() if line.startswith("OURS")]
    assert len(ours) == 2, output
    assert "cannot go online (No API key configured" in ours[0]
    assert "OURS WARNING wandb failed" in ours[1]
    assert len(read_log(run_dir)) == 4
    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb"))


def _read_until_closed(descriptor: int) -> str:
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:  # the last writer has closed the terminal
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")
