"""Small but complete run folders, as train.py leaves them: logs, videos, checkpoints, settings."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from browser import running_browser

from diffusion_policy.common.media import VideoFile
from diffusion_policy.workspace.run_logger import RunLogger

CONFIG = """\
name: train_diffusion_unet_lowdim
task_name: ${task.name}
horizon: 16
note: <script>alert("config")</script>
training:
  seed: 42
  num_epochs: 4
task:
  name: pusht_lowdim
"""

HYDRA = """\
hydra:
  job: {name: train, config_name: demo_pusht}
  overrides:
    hydra: ['hydra.run.dir=outputs/demo', 'hydra.mode=RUN', 'hydra.verbose=true']
  runtime:
    config_sources:
    - {path: hydra.conf, schema: pkg, provider: hydra}
    - {path: /somewhere/my configs, schema: file, provider: command-line}
"""

# As `python -m diffusion_policy.report`, where SIGINT may be ignored: tests run in the background.
SERVE = """\
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("diffusion_policy.report", run_name="__main__", alter_sys=True)
"""
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ENV = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def write_video(path: pathlib.Path, n_frames: int = 20, size: int = 64) -> None:
    """A dot that moves over a white square, 10 frames per second."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(n_frames):
            image = np.full((size, size, 3), 255, np.uint8)
            image[20:30, i : i + 10] = (65, 105, 225)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def make_run(tmp_path):
    """make_run(n_epochs=4, evaluate=True, n_videos=2) -> folder of a run in ``tmp_path``.

    ``seed`` and ``extra`` (lines of YAML) are in its configuration; ``shift`` is added to the score
    of the test with seed 10000.
    """

    def make(
        name="demo run",
        n_epochs=4,
        n_steps=5,
        evaluate=True,
        n_videos=2,
        seed=42,
        extra="",
        shift=0.0,
    ) -> pathlib.Path:
        folder = tmp_path / name
        (folder / ".hydra").mkdir(parents=True)
        config = CONFIG.replace("seed: 42", f"seed: {seed}") + extra
        (folder / ".hydra" / "config.yaml").write_text(config)
        (folder / ".hydra" / "overrides.yaml").write_text("- training.seed=42\n- 'x=a b'\n")
        (folder / ".hydra" / "hydra.yaml").write_text(HYDRA)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "latest.ckpt").write_bytes(b"x" * 2_500_000)
        with RunLogger(folder, {"mode": "disabled"}, {}) as logger:
            for epoch in range(n_epochs):
                for i in range(n_steps):
                    step = epoch * n_steps + i
                    record = {"train_loss": 1 / (step + 1), "global_step": step, "epoch": epoch}
                    record["lr"] = 1e-4
                    if i == n_steps - 1:
                        record |= {"val_loss": 2 / (step + 1), "train_action_mse_error": 3.0}
                        if evaluate:
                            record |= evaluation(folder, epoch, n_videos, shift)
                    logger.log(record, step)
        return folder

    def evaluation(folder, epoch, n_videos, shift) -> dict:
        scores = {10000: 0.25 * epoch + shift, 10001: 1.0, 10002: 0.125}
        record = {f"test/sim_max_reward_{seed}": score for seed, score in scores.items()}
        record |= {"test/mean_score": sum(scores.values()) / 3}
        record |= {"train/sim_max_reward_0": 0.75, "train/mean_score": 0.75}
        for seed in list(scores)[:n_videos]:
            path = folder / "media" / f"{epoch}_{seed}.mp4"
            write_video(path)
            record[f"test/sim_video_{seed}"] = VideoFile(str(path))
        return record

    return make


@pytest.fixture
def make_sweep(make_run, tmp_path):
    """make_sweep("method", seeds=(42, 43), **of make_run) -> folder with ``train_0``, ``train_1``.

    Every further seed scores 0.03 more than the one before, in the mean.
    """

    def make(name, seeds=(42, 43), shift=0.0, **kwargs) -> pathlib.Path:
        for i, seed in enumerate(seeds):
            make_run(f"{name}/train_{i}", seed=seed, shift=shift + 0.09 * i, **kwargs)
        return tmp_path / name

    return make


@pytest.fixture
def write_status():
    """write_status(sweep, train_0="running", ...): status.json as a sweep leaves it."""

    def write(sweep: pathlib.Path, **states) -> None:
        tasks = {
            name: {"state": state, "attempts": 2, "exit_code": -9, "host": "node-7"}
            for name, state in states.items()
        }
        status = {"updated": "2026-01-01T00:00:00", "backend": "process", "tasks": tasks}
        (sweep / "status.json").write_text(json.dumps(status))

    return write


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with running_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def show(browser):
    """show(address, width=1280, height=1600, mobile=False): the browser, showing that page.

    After the test its console must be empty.
    """

    def open_page(address: str, width=1280, height=1600, mobile=False):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        browser.devtools("Emulation.setDeviceMetricsOverride", **size)
        browser.command("/url", url=address)
        return browser

    yield open_page
    assert browser.console() == []


@pytest.fixture
def read_tip():
    """read_tip(page, at=0.99): what the first chart says when the pointer is there, 0 to 1."""

    def read(page, at=0.99) -> list[str]:
        page.run("document.querySelector('.charts').scrollIntoView()")
        left, top, width, height = page.run(
            "const r = document.querySelector('.plot').getBoundingClientRect();"
            "return [r.left, r.top, r.width, r.height]"
        )
        page.devtools(
            "Input.dispatchMouseEvent", type="mouseMoved", x=left + at * width, y=top + height / 2
        )
        page.wait_for("!document.querySelector('.tip').hidden")
        tip = page.run("return document.querySelector('.tip').innerText")
        return tip.split("\n")

    return read


@contextlib.contextmanager
def served(folders, *arguments):
    """The report of folders, served by the command line: (its process, the address)."""
    command = [sys.executable, "-c", SERVE, *map(str, folders), "--watch", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | ENV
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.endswith("follows the runs; Ctrl-C ends it\n"), process.communicate()
        yield process, line.split()[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def serve():
    """serve(folders, *arguments) in a ``with`` statement: see :func:`served`."""
    return served
