"""What happens to a command line before Hydra sees it."""

import os
import shlex
import subprocess
import sys

import pytest
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from diffusion_policy.config.override import override
from diffusion_policy.workspace import command_line
from diffusion_policy.workspace.command_line import (
    OPTIONS,
    _how_to_continue,
    _with_ours,
    complete_overrides,
)


def test_our_own_options_need_no_plus():
    given = [
        "--config-name=x",
        "training.num_processes=2",
        "training.seed=1",
        "x=training.num_processes=3",
    ]
    assert complete_overrides(given) == [given[0], "++training.num_processes=2", *given[2:]]


@pytest.mark.parametrize("prefix", ["+", "++", "~"])
def test_a_prefix_that_is_there_stays(prefix):
    given = [f"{prefix}{name}=1" for name in OPTIONS]
    assert complete_overrides(given) == given


NAME = "hydra.job.name=train"
CHECK = "++hydra.callbacks.run_directory._target_="
CHECK += "diffusion_policy.workspace.run_directory.CheckRunDirectory"


@pytest.mark.parametrize(
    ("given", "complete"),
    [
        (["--config-name=x"], ["--config-name=x", NAME, CHECK]),
        (["--config-name", "x", "a=1"], ["--config-name", "x", NAME, CHECK, "a=1"]),
        (["a=1", "b=2", "--config-name=x"], [NAME, CHECK, "a=1", "b=2", "--config-name=x"]),
        (["hydra.job.name=mine", "a=1"], [CHECK, "hydra.job.name=mine", "a=1"]),
        ([NAME, CHECK, "a=1"], [NAME, CHECK, "a=1"]),
    ],
)
def test_ours_stand_beside_the_other_overrides(given, complete):
    assert _with_ours(given, "train") == complete


@pytest.mark.parametrize(
    "given",
    [
        ["--config-name=x"],
        ["a=1", "hydra.run.dir=old", "--config-name=x"],
        ["--config-dir", "/a=b", "-cn", "x", "a=1", "++hydra.run.dir='o l d'"],
        ["--config-name=x", "hydra.job.name=mine"],
    ],
)
@pytest.mark.parametrize(
    "folder", ["/data/my_run", "/prüfung = 100% $HOME {a} [b] \"c\" 'd'/\n数据"]
)
def test_an_interrupted_run_says_how_it_continues(monkeypatch, given, folder):
    monkeypatch.setattr(sys, "argv", ["my dir/train.py", *_with_ours(given, "train")])
    start, _, command = _how_to_continue(folder).partition(": ")
    assert start == "this continues the run"
    show = ["sh", "-c", command.replace("python", "printf '%s\\0'", 1)]
    words = subprocess.run(show, capture_output=True, check=True, text=True).stdout.split("\0")
    assert words[0] == "my dir/train.py"
    options = get_args_parser().parse_args(words[1:-1])
    assert options.config_name == "x"
    others = [word for word in given if "=" in word and word[0] != "-" and "run.dir" not in word]
    others = [word for word in others if word != "/a=b"]
    assert options.overrides == [override("hydra.run.dir", folder), *others]


def test_the_hint_of_several_processes_can_be_pasted(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    sentence = _how_to_continue("/a b")
    assert sentence == f"the same command with {shlex.quote('hydra.run.dir=/a b')} continues"


def test_a_folder_that_cannot_be_pasted_is_told_all_the_same():
    folder = os.fsdecode(b"/data/\xff")
    assert _how_to_continue(folder) == (
        "the same command with hydra.run.dir at '/data/\\udcff' continues"
    )


@pytest.mark.parametrize(
    ("folder", "argument", "sentence"),
    [
        ("a${x}", "training.seed=1", "go to another one"),
        (
            "a",
            "hydra.run.dir=/ü = x",
            "cannot read the override hydra.run.dir=/ü = x; if its value",
        ),
        ("a", r"name='\${x}'", "name cannot be"),
    ],
)
def test_what_hydra_cannot_read_is_one_sentence(tmp_path, folder, argument, sentence):
    (tmp_path / folder).mkdir()
    train = os.path.join(os.path.dirname(__file__), "..", "..", "train.py")
    done = subprocess.run(
        [sys.executable, os.path.abspath(train), "--config-name=demo_pusht", argument],
        cwd=tmp_path / folder,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"},
        timeout=240,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / folder).iterdir()) == []


@pytest.mark.parametrize("seconds", [5, None])
def test_a_time_limit_between_processes_says_that_one_process_has_nobody_to_wait_for(
    seconds, monkeypatch, caplog
):
    class Workspace:
        def __init__(self, cfg):
            pass

        def run(self):
            pass

    monkeypatch.setattr(command_line, "_workspace_class", lambda cfg: Workspace)
    command_line._run(OmegaConf.create({"training": {"seed": 1}}), None)
    assert not caplog.text
    command_line._run(OmegaConf.create({"training": {"process_timeout_s": seconds}}), None)
    assert "training.process_timeout_s changes nothing" in caplog.text
