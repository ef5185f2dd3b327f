"""CPUs and GPUs of one machine, shared by runs."""

import pytest

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.multirun import resources
from diffusion_policy.multirun.backend import Attempt, Ended, Started
from diffusion_policy.multirun.process_backend import ProcessBackend
from diffusion_policy.multirun.resources import Machine, Resources, per_run_resources

# Waits for a file, so that a test decides when it ends.
COMMAND = """
import os, pathlib, sys, time
print("GPUs", os.environ["CUDA_VISIBLE_DEVICES"], "threads", os.environ["OMP_NUM_THREADS"])
sys.stdout.flush()
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
"""


class Runs:
    """A backend and what is known of its runs."""

    def __init__(self, folder, per_run, machine):
        self.folder = folder
        self.backend = ProcessBackend(per_run, machine)
        self.started, self.ended = [], {}

    def submit(self, *names):
        for name in names:
            command = ["python", "-c", COMMAND, str(self.folder / f"{name}.end")]
            self.backend.submit(Attempt(name, 1, command, self.folder / name))

    def poll(self, seconds=0.0):
        for event in self.backend.poll(seconds):
            if isinstance(event, Started):
                self.started.append(event.task)
            else:
                self.ended[event.task] = event.exit_code

    def end(self, name):
        (self.folder / f"{name}.end").touch()
        while name not in self.ended:
            self.poll(10)

    def says(self, name) -> str:
        while not (lines := (self.folder / name).read_text().splitlines()[1:]):
            self.poll(0.05)
        return lines[0]


@pytest.fixture
def make_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = []

    def make(*args):
        made.append(Runs(tmp_path, *args))
        return made[-1]

    yield make
    for runs in made:
        runs.backend.close()


def test_runs_wait_for_cpus(make_runs):
    runs = make_runs(Resources(1.5, 0), Machine(4, ()))
    runs.submit("a", "b", "c")
    runs.poll()
    assert runs.started == ["a", "b"]
    assert runs.says("a") == "GPUs  threads 1"
    runs.end("b")
    runs.poll()
    assert runs.started == ["a", "b", "c"]


def test_fractions_share_a_gpu_and_whole_ones_do_not(make_runs):
    runs = make_runs(Resources(1, 0.5), Machine(16, ("3", "5")))
    runs.submit(*"abcde")
    runs.poll()
    assert runs.started == list("abcd")
    assert [runs.says(name)[:6] for name in "abcd"] == ["GPUs 3", "GPUs 3", "GPUs 5", "GPUs 5"]
    runs.end("c")
    runs.poll()
    assert runs.says("e").startswith("GPUs 5 ")


def test_a_run_can_have_several_gpus(make_runs):
    runs = make_runs(Resources(3, 2), Machine(16, ("0", "1", "2")))
    runs.submit("a", "b")
    runs.poll()
    assert runs.started == ["a"]
    assert runs.says("a") == "GPUs 0,1 threads 3"


def test_the_number_of_threads_can_be_given(make_runs, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    runs = make_runs(Resources(1, 0), Machine(2, ()))
    runs.submit("a")
    runs.poll()
    assert runs.says("a") == "GPUs  threads 6"


def test_a_run_that_cannot_be_started_does_not_take_the_place_of_another(make_runs):
    runs = make_runs(Resources(1, 0), Machine(1, ()))
    (runs.folder / "a").mkdir()  # where its output should go
    runs.submit("a", "b")
    runs.poll()
    assert runs.ended == {"a": None}
    assert runs.started == ["b"]


def test_killing_withdraws_what_waits(make_runs):
    runs = make_runs(Resources(1, 0), Machine(1, ()))
    runs.submit("a", "b")
    runs.poll()
    runs.backend.kill()
    events = runs.backend.poll(1)
    assert Ended("b", None, "was not started") in events
    assert Ended("a", -9) in events


@pytest.mark.parametrize(
    ("machine", "n_runs", "num_processes", "expected"),
    [
        (Machine(2, ()), 3, 1, Resources(1, 0)),  # two at a time
        (Machine(2, ()), 1, 1, Resources(2, 0)),
        (Machine(64, ()), 3, 1, Resources(7, 0)),
        (Machine(8, ()), 3, 4, Resources(4, 0)),
        (Machine(16, ("0",)), 3, 1, Resources(7, 1)),  # one at a time
        (Machine(8, ("0", "1", "2", "3")), 3, 1, Resources(2, 1)),
        (Machine(8, ("0", "1", "2", "3")), 3, 2, Resources(4, 2)),
        (Machine(1, ("0", "1")), 3, 1, Resources(1, 1)),
    ],
)
def test_what_a_run_gets_unless_the_user_says(machine, n_runs, num_processes, expected):
    assert per_run_resources(machine, n_runs, num_processes) == expected


def test_more_runs_at_a_time_share_the_cpus():
    assert per_run_resources(Machine(16, ("0",)), 4, num_gpus=0.25) == Resources(4, 0.25)
    assert per_run_resources(Machine(16, ("0",)), 4, num_cpus=2, num_gpus=0.5) == Resources(2, 0.5)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"num_cpus": 7}, "but this machine has 2 CPUs and 1 GPU; pass --num_cpus 2 --num_gpus 1"),
        ({"num_gpus": 2}, "pass --num_cpus 2 --num_gpus 1, or less"),
        ({"num_gpus": 1.5}, "several whole ones"),
        ({"num_cpus": -1}, "cannot have -1 CPUs"),
    ],
)
def test_what_a_machine_lacks_is_said_at_once(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        per_run_resources(Machine(2, ("0",)), 3, **given)


def test_a_cluster_gives_what_the_published_sweeps_used():
    assert per_run_resources(None, 3) == Resources(7, 1)
    assert per_run_resources(None, 3, num_processes=4) == Resources(7, 4)
    assert per_run_resources(None, 3, num_gpus=0.5) == Resources(7, 0.5)


def test_gpus_can_be_chosen_by_the_environment(monkeypatch):
    for text, names in (("2, 5", ("2", "5")), ("", ()), ("-1", ())):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert resources.this_machine().gpus == names
