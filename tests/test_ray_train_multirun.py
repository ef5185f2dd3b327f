"""ray_train_multirun.py and ray_exec.py: their options, and mistakes in one sentence."""

import subprocess
import sys

import pytest
import sweeps
from click.testing import CliRunner

from diffusion_policy.multirun import start
from diffusion_policy.multirun.outcome import Outcome
from diffusion_policy.multirun.start import Options


@pytest.fixture
def options_of(monkeypatch):
    """options_of(arguments): what the command line asks for, without doing it."""
    calls = []

    def note(*args):
        calls.append(args)
        return Outcome(0, "done")

    monkeypatch.setattr(start, "run_new_sweep", note)
    monkeypatch.setattr(start, "resume_sweep", note)
    monkeypatch.syspath_prepend(sweeps.REPOSITORY)
    from ray_train_multirun import main

    def parse(*arguments):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.endswith("\ndone\n")
        return calls.pop()

    return parse


def test_the_defaults_are_those_of_the_specification(options_of):
    expected = ("x", None, (), [42, 43, 44], Options(words=[]))
    assert options_of("--config-name=x") == expected
    assert Options() == Options(
        backend="ray",
        ray_address="auto",
        num_cpus=None,
        num_gpus=None,
        max_retries=0,
        monitor_max_retries=3,
        monitor_keys=("test/mean_score",),
        data_src=None,
        unbuffer_python=False,
        single_node=False,
    )


def test_every_option_of_the_specification_arrives(options_of):
    line = "--config-name n --config-dir d --seeds 1,2 --monitor_key a --monitor_key b"
    line += " --ray_address h:1 --num_cpus 2 --num_gpus 0.5 --max_retries 4"
    line += " --monitor_max_retires 5 --data_src s --unbuffer_python --single_node -- x=1 y.z=2"
    short = line
    for name, letters in {
        "config-name": "cn",
        "config-dir": "cd",
        "seeds": "s",
        "monitor_key": "k",
        "ray_address": "ra",
        "num_cpus": "nc",
        "num_gpus": "ng",
        "max_retries": "mr",
        "data_src": "d",
        "unbuffer_python": "u",
        "single_node": "sn",
    }.items():
        short = short.replace(f"--{name} ", f"-{letters} ")
    assert short.count(" --") == 2, "only --monitor_max_retires has no letters"
    words = line.partition("--monitor_key")[1:]
    words = "".join(words).partition(" -- ")[0].split()
    for given in (line, short, line.replace("max_retires", "max_retries")):
        name, config_dir, overrides, seeds, options = options_of(*given.split())
        assert (name, config_dir, overrides, seeds) == ("n", "d", ("x=1", "y.z=2"), [1, 2])
        assert options.monitor_keys == ("a", "b")
        assert (options.ray_address, options.data_src) == ("h:1", "s")
        assert (options.num_cpus, options.num_gpus) == (2.0, 0.5)
        assert (options.max_retries, options.monitor_max_retries) == (4, 5)
        assert options.unbuffer_python
        assert options.single_node
        again = options_of("--resume", "r", *options.words)[-1]
        assert again == options, "a --resume with the words that it prints does the same"


def test_resuming_takes_overrides(options_of):
    folder, overrides, options = options_of("--resume", "r", "--backend=process", "--", "x=1")
    assert (folder, overrides, options.backend) == ("r", ("x=1",), "process")
    assert options.words == ["--backend", "process"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--resume", "nowhere"], "nowhere/sweep.json"),
        (["--config-name=nonsense"], "Cannot find primary config 'nonsense'"),
        (["--config-name=demo_pusht", "--seeds=a"], "--seeds 'a'"),
        (["--config-name=demo_pusht", "horizn=1"], "Could not override 'horizn'"),
        (["--config-name=demo_pusht", "--num_cpus=999"], "every run asks for 999 CPUs"),
        (["--config-name=demo_pusht", "--data_src=nowhere"], "--data_src nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_makes_nothing(tmp_path, words, sentence):
    folder = tmp_path / "sweep"
    place = [] if "--resume" in words else ["--", f"multi_run.run_dir={folder}"]
    output = sweeps.finish(sweeps.start("--backend=process", *words, *place), exit_code=1)
    assert output.splitlines()[-1].startswith("error: ")
    assert sentence in output
    assert "Traceback" not in output
    assert not folder.exists()


@pytest.mark.parametrize("words", [[], ["--config-name=x", "--resume=y"]])
def test_either_a_new_sweep_or_one_to_resume(words):
    output = sweeps.finish(sweeps.start(*words), exit_code=2)
    assert "give either --config-name, for a new sweep, or --resume" in output


@pytest.mark.parametrize("script", ["ray_train_multirun.py", "ray_exec.py"])
def test_help_explains_without_importing_what_only_sweeps_need(script):
    code = "import runpy, sys; sys.argv[1:] = ['--help']\n"
    code += f"try: runpy.run_path({script!r}, run_name='__main__')\nexcept SystemExit: pass\n"
    code += "print([m for m in ('ray', 'torch', 'pandas', 'wandb', 'hydra') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=sweeps.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.endswith("\n[]\n"), result
    for option in ("--ray_address", "--num_cpus", "--num_gpus", "--max_retries", "--data_src"):
        assert option in result.stdout
