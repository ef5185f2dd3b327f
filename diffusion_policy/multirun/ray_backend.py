"""The runs of a sweep as tasks of a ray cluster."""

import re
import socket
from dataclasses import dataclass
from typing import Any

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.multirun.backend import Attempt, Backend, Ended, Started
from diffusion_policy.multirun.resources import Resources, check_fits
from diffusion_policy.multirun.run_command import (
    CONSOLE_HEADER,
    console,
    folder_with_data,
    start_command,
    wait_for_end,
)

CLOSE_S = 10.0
RESULT_S = 60.0  # for two numbers, when the task is done


@dataclass
class _Running:
    attempt: Attempt
    console_start: int  # size of the console file when the attempt was submitted
    has_started: bool = False


class RayBackend(Backend):
    """Submits one ray task per attempt; ray finds the node. :func:`.ray_cluster.connect` comes
    first.

    The folder of the sweep is shared by all nodes; when a run has started is read there.

    Args:
        per_run: What every run gets.
        data_src: Folder that ``data`` is for the runs.
        unbuffer_python: Make Python in the commands write its output at once.
        n_on_one_node: Reserve room for so many runs on one node, and start all of them there. None:
            anywhere.

    Raises:
        ConfigError: No node has what a run, or all of them on one node, needs.
    """

    name = "ray"

    def __init__(
        self,
        per_run: Resources,
        data_src: str,
        unbuffer_python: bool = False,
        n_on_one_node: int | None = None,
    ):
        import ray

        self._ray = ray
        self._data_src = data_src
        self._unbuffer_python = unbuffer_python
        self._options: dict[str, Any] = {
            "num_cpus": per_run.num_cpus,
            "num_gpus": per_run.num_gpus,
            "max_retries": 0,  # the launcher decides that
        }
        self._group = self._reserve(per_run, n_on_one_node) if n_on_one_node else None
        if self._group is None:
            check_nodes(per_run)
        self._running: dict[Any, _Running] = {}

    def submit(self, attempt: Attempt) -> None:
        task = self._ray.remote(_run_attempt).options(**self._options)
        ref = task.remote(attempt, self._data_src, self._unbuffer_python)
        start = attempt.console.stat().st_size if attempt.console.exists() else 0
        self._running[ref] = _Running(attempt, start)

    def poll(self, seconds: float) -> list[Started | Ended]:
        refs = list(self._running)
        if not refs:
            return []
        done, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)  # all that are done
        if not done:
            done, _ = self._ray.wait(refs, timeout=seconds)
        events = self._what_started()
        for ref in done:
            events += self._what_ended(ref)
        return events

    def interrupt(self) -> None:
        for ref in self._running:
            self._ray.cancel(ref, force=False)

    def end(self, task: str) -> None:
        for ref, running in self._running.items():
            if running.attempt.task == task:
                self._ray.cancel(ref, force=True)

    def describe(self, task: str) -> str:
        [running] = [run for run in self._running.values() if run.attempt.task == task]
        return f"on {_host_in_console(running) or 'a node of the cluster'}"

    def kill(self) -> None:
        for ref in self._running:
            self._ray.cancel(ref, force=True)

    def close(self) -> None:
        self.kill()
        if self._running:
            refs = list(self._running)
            self._ray.wait(refs, num_returns=len(refs), timeout=CLOSE_S)
        if self._group is not None:
            self._ray.util.remove_placement_group(self._group)
        self._ray.shutdown()

    def _reserve(self, per_run: Resources, n_runs: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        total = Resources(per_run.num_cpus * n_runs, per_run.num_gpus * n_runs)
        largest = _largest_node(per_run)
        if total.num_cpus > largest.num_cpus or total.num_gpus > largest.num_gpus:
            raise ConfigError(
                f"--single_node: {n_runs} runs ask for {total} on one node, but the largest node "
                f"of the cluster has {largest}; pass smaller --num_cpus and --num_gpus, or leave "
                "--single_node out"
            )
        bundle = {"CPU": total.num_cpus, "GPU": total.num_gpus}
        group = self._ray.util.placement_group(
            [{name: number for name, number in bundle.items() if number}], strategy="STRICT_PACK"
        )
        self._options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
        return group

    def _what_started(self) -> list[Started | Ended]:
        events: list[Started | Ended] = []
        for running in self._running.values():
            if not running.has_started and (host := _host_in_console(running)):
                running.has_started = True
                events.append(Started(running.attempt.task, host))
        return events

    def _what_ended(self, ref: Any) -> list[Started | Ended]:
        from ray.exceptions import RayError, TaskCancelledError

        running = self._running.pop(ref)
        task = running.attempt.task
        try:
            host, code = self._ray.get(ref, timeout=RESULT_S)
        except TaskCancelledError:
            return [Ended(task, None, "was killed" if running.has_started else "was not started")]
        except RayError as error:
            return [Ended(task, None, describe_error(error))]
        events: list[Started | Ended] = [Ended(task, code)]
        return events if running.has_started else [Started(task, host), *events]


def _run_attempt(attempt: Attempt, data_src: str, unbuffer_python: bool) -> tuple[str, int]:
    """The task, in a worker: its current directory is ray's copy of the repository.

    Returns:
        (host, exit code of the command).
    """
    environment = {"PYTHONUNBUFFERED": "TRUE"} if unbuffer_python else {}
    if not attempt.console.parent.is_dir():
        raise ConfigError(
            f"{attempt.console.parent} is not there on {socket.gethostname()}: the folder of a "
            "sweep has to be on a file system that all nodes share; name one with --data_src"
        )
    with (
        folder_with_data(data_src) as cwd,
        console(attempt.console, attempt.number, attempt.command) as output,
    ):
        code, _ = wait_for_end(start_command(attempt.command, environment, output, cwd))
    return socket.gethostname(), code


def _host_in_console(running: _Running) -> str | None:
    """Where the attempt says that it has started."""
    try:
        with open(running.attempt.console, "rb") as file:
            file.seek(running.console_start)
            for line in file:
                match = re.match(CONSOLE_HEADER, line.decode(errors="replace"))
                if match and int(match["attempt"]) == running.attempt.number:
                    return match["host"]
    except FileNotFoundError:
        pass
    return None


def check_nodes(request: Resources) -> None:
    """Raises ConfigError if no node has that: ray would wait for one for ever."""
    check_fits(request, _largest_node(request), "the largest node of the ray cluster")


def _largest_node(request: Resources) -> Resources:
    """The node that has most of what is asked for."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [Resources(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes]

    def share(size: Resources) -> tuple[float, float]:
        return (
            min(size.num_gpus / (request.num_gpus or 1), 1.0),
            min(size.num_cpus / (request.num_cpus or 1), 1.0),
        )

    return max(sizes, key=lambda size: (sum(share(size)), size.num_gpus, size.num_cpus))


def describe_error(error: Exception) -> str:
    """Why a task has no result. What ray itself says goes on for pages."""
    from ray.exceptions import RayTaskError

    if isinstance(error, RayTaskError):
        return " ".join(str(getattr(error, "cause", None) or error).split())
    text = " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).split())
    return f"its worker or node was lost: {text.partition('. ')[0].rstrip('.')}"
