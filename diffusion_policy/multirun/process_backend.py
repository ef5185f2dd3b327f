"""The runs of a sweep as child processes on this machine."""

import os
import socket
import subprocess
import time
from dataclasses import dataclass

from diffusion_policy.common.waiting import describe_process
from diffusion_policy.multirun.backend import Attempt, Backend, Ended, Started
from diffusion_policy.multirun.resources import Machine, Resources
from diffusion_policy.multirun.run_command import (
    REPOSITORY,
    console,
    interrupt,
    kill,
    start_command,
)

POLL_S = 0.02
_ROUNDING = 1e-6


@dataclass
class _Running:
    process: subprocess.Popen
    gpus: list[str]


class ProcessBackend(Backend):
    """Starts commands in the repository, side by side while CPUs and GPUs suffice.

    A command sees the GPUs that are its own as ``cuda:0``, ``cuda:1`` ...; several commands share
    one if they ask for a fraction.

    Args:
        per_run: What every command gets.
        machine: What there is.
        unbuffer_python: Make Python in the commands write its output at once.
    """

    name = "process"

    def __init__(self, per_run: Resources, machine: Machine, unbuffer_python: bool = False):
        self._per_run = per_run
        self._free_cpus = float(machine.num_cpus)
        self._free_gpus = dict.fromkeys(machine.gpus, 1.0)
        self._unbuffer_python = unbuffer_python
        self._waiting: list[Attempt] = []
        self._running: dict[str, _Running] = {}
        self._withdrawn: list[Started | Ended] = []

    def submit(self, attempt: Attempt) -> None:
        self._waiting.append(attempt)

    def poll(self, seconds: float) -> list[Started | Ended]:
        deadline = time.monotonic() + seconds
        while True:
            events = [*self._withdrawn, *self._collect(), *self._start_what_fits()]
            self._withdrawn = []
            if events or time.monotonic() >= deadline:
                return events
            time.sleep(POLL_S)

    def interrupt(self) -> None:
        self._withdraw()
        for running in self._running.values():
            interrupt(running.process)

    def end(self, task: str) -> None:
        kill(self._running[task].process)

    def describe(self, task: str) -> str:
        return describe_process(self._running[task].process.pid)

    def kill(self) -> None:
        self._withdraw()
        for running in self._running.values():
            kill(running.process)

    def _withdraw(self) -> None:
        self._withdrawn += [Ended(a.task, None, "was not started") for a in self._waiting]
        self._waiting = []

    def _start_what_fits(self) -> list[Started | Ended]:
        events: list[Started | Ended] = []
        while self._waiting and (gpus := self._reserve()) is not None:
            attempt = self._waiting.pop(0)
            try:
                process = self._start(attempt, gpus)
            except OSError as error:
                self._give_back(gpus)
                events.append(Ended(attempt.task, None, f"could not be started: {error}"))
                continue
            self._running[attempt.task] = _Running(process, gpus)
            events.append(Started(attempt.task, socket.gethostname()))
        return events

    def _start(self, attempt: Attempt, gpus: list[str]) -> subprocess.Popen:
        threads = str(max(1, int(self._per_run.num_cpus)))  # as ray does
        environment = {
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        }
        if self._unbuffer_python:
            environment["PYTHONUNBUFFERED"] = "TRUE"
        with console(attempt.console, attempt.number, attempt.command) as output:
            return start_command(attempt.command, environment, output, REPOSITORY)

    def _collect(self) -> list[Started | Ended]:
        ended = [task for task, run in self._running.items() if run.process.poll() is not None]
        return [self._release(task) for task in ended]

    def _reserve(self) -> list[str] | None:
        """Takes what a run needs; returns its GPUs, or None if there is not enough now."""
        share = min(self._per_run.num_gpus, 1.0)
        n_gpus = max(1, int(self._per_run.num_gpus)) if share else 0
        # The fullest that has room: whole ones stay free for as long as possible.
        with_room = [gpu for gpu, free in self._free_gpus.items() if free >= share - _ROUNDING]
        gpus = sorted(with_room, key=self._free_gpus.__getitem__)[:n_gpus]
        if len(gpus) < n_gpus or self._free_cpus < self._per_run.num_cpus - _ROUNDING:
            return None
        self._free_cpus -= self._per_run.num_cpus
        for gpu in gpus:
            self._free_gpus[gpu] -= share
        return gpus

    def _release(self, task: str) -> Ended:
        running = self._running.pop(task)
        self._give_back(running.gpus)
        kill(running.process)  # what a killed run leaves behind: workers of its data loader ...
        return Ended(task, running.process.returncode)

    def _give_back(self, gpus: list[str]) -> None:
        self._free_cpus += self._per_run.num_cpus
        for gpu in gpus:
            self._free_gpus[gpu] += min(self._per_run.num_gpus, 1.0)
