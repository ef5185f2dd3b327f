"""train.py and eval.py as a user meets them: help, one sentence per mistake, exit codes."""

import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def run(*arguments, cwd=REPOSITORY, **kwargs):
    arguments = [str(REPOSITORY / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        **kwargs,
    )


def test_train_help_explains_and_lists_the_configurations():
    result = run("train.py", "--help")
    assert result.returncode == 0
    assert "train_diffusion_unet_lowdim_workspace" in result.stdout
    assert "task=pusht_lowdim" in result.stdout
    assert "resumes" in result.stdout


def test_help_does_not_import_what_only_training_needs():
    code = "import sys; sys.argv=['train.py','--help']; import runpy\n"
    code += "try: runpy.run_path('train.py', run_name='__main__')\n"
    code += "except SystemExit: pass\n"
    code += (
        "sys.stderr.write(' '.join(m for m in ('torch','diffusers','wandb') if m in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert result.stderr == ""


def test_train_without_a_configuration_says_so():
    result = run("train.py")
    assert result.returncode == 1
    assert "error: --config-name is missing" in result.stderr


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("task.dataset.zarr_path=nowhere/x.zarr", "download_data pusht"),
        ("horizon=8", "horizon"),
        ("training.device=cuda:77", "cuda:77"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_non_zero_exit(tmp_path, override, sentence):
    result = run(
        "train.py",
        "--config-name=demo_pusht",
        f"hydra.run.dir={tmp_path}/run",
        override,
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert sentence in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("key", ["hydra.run.dir", "--multirun hydra.sweep.dir"])
def test_a_run_directory_that_is_a_file_is_one_sentence(tmp_path, key):
    (tmp_path / "file").touch()
    arguments = f"--config-name=demo_pusht {key}={tmp_path}/file".split()
    result = run("train.py", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path}/file cannot be used as a run directory")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "no checkpoint"), (b"", "empty"), (b"PK\x03\x04 but no more", "incomplete")],
)
def test_eval_of_a_bad_checkpoint_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "latest.ckpt"
    if content is not None:
        path.write_bytes(content)
    result = run("eval.py", "-c", path, "-o", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "latest.ckpt" in result.stderr
    assert "Traceback" not in result.stderr
    assert sentence in result.stderr


def test_eval_asks_before_it_uses_an_existing_directory(tmp_path):
    result = run("eval.py", "-c", tmp_path / "x.ckpt", "-o", tmp_path, input="n\n")
    assert "already exists" in result.stdout
    assert result.returncode == 1
    result = run("eval.py", "-c", tmp_path / "x.ckpt", "-o", tmp_path, "--overwrite")
    assert "already exists" not in result.stdout


def test_eval_help_explains_every_option():
    text = run("eval.py", "--help").stdout
    for option in ("--checkpoint", "--output_dir", "--device", "--overwrite", "--trust-checkpoint"):
        assert option in text
