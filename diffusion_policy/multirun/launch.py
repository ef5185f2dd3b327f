"""The life of a sweep: start its runs, try again what dies, watch the metrics, heed Ctrl-C."""

import contextlib
import logging
import time
from collections.abc import Iterator

from diffusion_policy.common.errors import DiffusionPolicyError, ProcessTimeoutError
from diffusion_policy.common.waiting import wait_until
from diffusion_policy.multirun.backend import Attempt, Backend, Ended, Started
from diffusion_policy.multirun.monitor_process import MonitorProcess
from diffusion_policy.multirun.progress import Progress
from diffusion_policy.multirun.run_command import INTERRUPTED, describe_exit
from diffusion_policy.multirun.signals import StopSignals, stop_signals
from diffusion_policy.multirun.silence import TIMEOUT_S, Silences, patience_with_runs
from diffusion_policy.multirun.status import State, SweepStatus
from diffusion_policy.multirun.sweep import Sweep

log = logging.getLogger(__name__)

POLL_S = 0.2
N_SIGNALS = 2  # the first interrupts, the second kills; another one ends this process


class Launcher:
    """Takes all runs of a sweep that are not finished to their end.

    Args:
        sweep: The sweep.
        status: Of its runs, which this keeps.
        backend: Where they take place.
        monitor: Ended when the runs have.
        progress: Shows them.
        max_retries: How often a run that fails is started again; it continues from its last
            checkpoint.
        run_timeout_s: Seconds after which a run that writes nothing is killed, which is a failure;
            0: never.

    Attributes:
        endings: How the last attempt of each run ended, in words, but for those that finished.
        was_interrupted: Whether a signal ended the sweep.
    """

    def __init__(
        self,
        sweep: Sweep,
        status: SweepStatus,
        backend: Backend,
        monitor: MonitorProcess,
        progress: Progress,
        max_retries: int = 0,
        run_timeout_s: float = TIMEOUT_S,
    ):
        self._sweep = sweep
        self._status = status
        self._backend = backend
        self._monitor = monitor
        self._progress = progress
        self._tasks = {task.name: task for task in sweep.tasks}
        self._retries_left = dict.fromkeys(self._tasks, max_retries)
        self._open: set[str] = set()
        patience = patience_with_runs(run_timeout_s)
        self._silences = Silences(sweep.run_dir, backend.describe, patience)
        self._silent: dict[str, str] = {}  # killed for it, in words
        self._n_heeded = 0
        self.endings: dict[str, str] = {}
        self.was_interrupted = False

    def run(self) -> None:
        """Returns when every run has ended, however it did.

        Signals are handled from here on, so only the main thread of a process can call this.

        Raises:
            DiffusionPolicyError: The folder of the sweep cannot be written.
        """
        with stop_signals(N_SIGNALS) as stop, self._everything_ends():
            self._monitor.start()
            for task in self._status.names(State.WAITING):
                self._submit(task)
            while self._open:
                self._heed(stop)
                for event in self._backend.poll(POLL_S):
                    self._take(event)
                self._end_silent_runs()
                self._monitor.look_after()
                self._progress.update()
            self._end_monitor(stop)

    @contextlib.contextmanager
    def _everything_ends(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._backend.kill()
            self._monitor.kill()
            self._progress.close()
            self._status.write()

    def _submit(self, task: str) -> None:
        self._open.add(task)
        self._backend.submit(
            Attempt(
                task=task,
                number=self._status[task].attempts + 1,
                command=self._tasks[task].command,
                console=self._sweep.console(task),
            )
        )

    def _end_silent_runs(self) -> None:
        running = [t for t in self._status.names(State.RUNNING) if t in self._open]
        for task, sentence in self._silences.look(running).items():
            log.warning("%s", sentence)
            self._silent[task] = "killed, since it wrote nothing any more"
            self._backend.end(task)

    def _take(self, event: Started | Ended) -> None:
        if isinstance(event, Started):
            self._take_start(event)
        else:
            self._take_end(event)

    def _take_start(self, event: Started) -> None:
        task = event.task
        attempts = self._status[task].attempts + 1
        self._status.change(task, state=State.RUNNING, attempts=attempts, host=event.host)
        which = f", attempt {attempts}" if attempts > 1 else ""
        log.info("%s (seed %d) runs on %s%s", task, self._tasks[task].seed, event.host, which)

    def _take_end(self, event: Ended) -> None:
        task, state = event.task, self._state_after(event)
        ending = event.reason if event.exit_code is None else describe_exit(event.exit_code)
        ending = self._silent.pop(task, ending)
        self._open.discard(task)
        self._status.change(task, state=state, exit_code=event.exit_code)
        if state == State.FINISHED:
            log.info("%s finished", task)
            return
        self.endings[task] = ending
        if state == State.FAILED and not self.was_interrupted and self._retries_left[task] > 0:
            self._retries_left[task] -= 1
            self._status.change(task, state=State.WAITING)
            log.warning("%s failed (%s); it continues from its last checkpoint", task, ending)
            self._submit(task)
        elif state != State.WAITING:
            log.warning("%s %s (%s)", task, state, ending)

    def _state_after(self, event: Ended) -> State:
        if event.exit_code == 0:
            return State.FINISHED
        if event.exit_code in INTERRUPTED:
            return State.INTERRUPTED
        if self.was_interrupted and self._status[event.task].state == State.WAITING:
            return State.WAITING  # withdrawn
        if self._n_heeded == N_SIGNALS:
            return State.INTERRUPTED  # killed by us
        return State.FAILED

    def _heed(self, stop: StopSignals) -> None:
        if stop.count > 0 and self._n_heeded == 0:
            self._n_heeded, self.was_interrupted = 1, True
            log.warning("Interrupting the runs; press Ctrl-C once more to kill them.")
            self._backend.interrupt()
        elif stop.count > 1 and self._n_heeded == 1:
            self._n_heeded = 2
            log.warning("Killing the runs; they continue from their last checkpoints.")
            self._backend.kill()

    def _monitor_ends(self, stop: StopSignals, seconds: float) -> bool:
        time.sleep(min(seconds, POLL_S))
        return not self._monitor.is_running() or stop.count >= N_SIGNALS

    def _end_monitor(self, stop: StopSignals) -> None:
        self._monitor.interrupt()
        try:
            wait_until(lambda seconds: self._monitor_ends(stop, seconds), self._monitor.waiting())
        except ProcessTimeoutError as error:
            log.warning("%s", error)
        self._monitor.kill()
        try:
            self._monitor.finish()
        except DiffusionPolicyError as error:
            log.warning("The metrics are not up to date: %s", error)
