"""How the processes of one run know of each other that they live.

In a collective operation a process waits for the others without end, and without a word: process 0
may be rolling out for hours, or it may have been stopped. So every process writes down, every few
seconds, that it lives, how far it is and what it is doing; a thread of each reads what the others
write. It warns of one that is silent, or that others wait for, and ends this process when that
takes too long: the launcher then ends the rest.
"""

import contextlib
import dataclasses
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_policy.common.errors import ProcessTimeoutError
from diffusion_policy.common.waiting import Patience, Waiting, describe_process

logger = logging.getLogger(__name__)

TIMEOUT_S = 3600.0
BEAT_S = 0.5
_PATIENCE_WITH_LONG = 10  # times longer than usual, until something is said of what takes long
_REMEDY = (
    "end the run, and start it again: it continues from its last checkpoint; if the process only "
    "needs longer, set training.process_timeout_s to more seconds, or to null for no limit"
)


def patience_of(training: Mapping[str, Any]) -> Patience:
    """What ``training.process_timeout_s`` says; published configurations do not have it.

    Raises:
        ConfigError: it is not a time.
    """
    limit_s = training.get("process_timeout_s", TIMEOUT_S)
    return Patience.from_option("training.process_timeout_s", limit_s)


@dataclass
class Sign:
    """What a process writes.

    Attributes:
        beat: grows as long as the process lives.
        step: number of times that it has begun to meet the others.
        doing: in words. takes_long: for as long as it likes.
        pid, host: where it is.
    """

    beat: int = 0
    step: int = 0
    doing: str = "starting"
    takes_long: bool = False
    pid: int = dataclasses.field(default_factory=os.getpid)
    host: str = dataclasses.field(default_factory=lambda: os.uname().nodename)


class SignsOfLife:
    """Writes those of this process, and watches those of the others.

    Args:
        store: where all of them write (``torch.distributed.Store``); used by one thread only, so it
            must not be the one that the process group uses.
        index, count: of this process; of processes.
        patience: with the others.
        give_up: what happens when it is over; gets the error.
    """

    def __init__(
        self,
        store: Any,
        index: int,
        count: int,
        patience: Patience,
        give_up: Callable[[ProcessTimeoutError], None] | None = None,
    ):
        self._store = store
        self._index = index
        self._sign = Sign()
        self._others = [_Other(i, patience) for i in range(count) if i != index]
        self._patience = patience
        self._give_up = give_up or self._end_process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)

    def __enter__(self) -> "SignsOfLife":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join(BEAT_S)

    def be_patient(self, patience: Patience) -> None:
        """From now on another patience with the others."""
        self._patience = patience

    def now(self, doing: str) -> None:
        """Says what this process is doing from now on."""
        self._sign.doing = doing

    def meet(self) -> None:
        """To be called before an operation in which all processes take part."""
        self._sign.step += 1

    @contextlib.contextmanager
    def doing(self, what: str, takes_long: bool = False) -> Iterator[None]:
        """Within this, the others read what this process is doing.

        Args:
            what: ``evaluating``.
            takes_long: they are to wait for as long as it lives.
        """
        earlier = self._sign.doing, self._sign.takes_long
        self._sign.takes_long, self._sign.doing = takes_long, what
        try:
            yield
        finally:
            self._sign.doing, self._sign.takes_long = earlier

    def _run(self) -> None:
        try:
            while not self._stop.wait(min(BEAT_S, self._patience.say_s / 2)):
                self._write()
                for other in self._others:
                    self._look_at(other)
        except ProcessTimeoutError as error:
            if not self._stop.is_set():
                self._give_up(error)
        except RuntimeError as error:  # the store is gone, and the launcher with it
            logger.debug("no more signs of life: %s", error)

    def _write(self) -> None:
        self._sign.beat += 1
        self._store.set(f"{self._index}", json.dumps(dataclasses.asdict(self._sign)))

    def _look_at(self, other: "_Other") -> None:
        key = f"{other.index}"
        if self._store.check([key]):
            other.see(Sign(**json.loads(self._store.get(key))))
        other.tick(self._sign.step, self._patience)

    def _end_process(self, error: ProcessTimeoutError) -> None:
        """The main thread is in the middle of an operation that nothing else interrupts."""
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
        os._exit(1)


class _Other:
    """Another process, as far as its signs tell."""

    def __init__(self, index: int, patience: Patience):
        self.index = index
        self._sign: Sign | None = None
        self._set(patience)

    def _set(self, patience: Patience) -> None:
        self._patience = patience
        self._silence = self._wait(patience, "give a sign of life")
        arrive = "come as far as this process"
        self._delay = self._wait(patience, arrive)
        long = Patience(None, patience.say_s * _PATIENCE_WITH_LONG)
        self._long_delay = self._wait(long, arrive)

    def _wait(self, patience: Patience, to: str) -> Waiting:
        return Waiting(patience, self._name, to, _REMEDY)

    def _name(self) -> str:
        if self._sign is None:
            return f"process {self.index} of the run"
        sign = self._sign
        here = sign.host == os.uname().nodename
        where = describe_process(sign.pid) if here else f"pid {sign.pid} on {sign.host}"
        return f"process {self.index} of the run ({sign.doing}; {where})"

    def see(self, sign: Sign) -> None:
        last, self._sign = self._sign, sign
        if last is None or sign.beat != last.beat:
            self._silence.restart()
        if last is None or (sign.step, sign.doing) != (last.step, last.doing):
            self._delay.restart()
            self._long_delay.restart()

    def tick(self, our_step: int, patience: Patience) -> None:
        """Says that this process waits for the other, when it is time.

        Raises:
            ProcessTimeoutError: it is silent, or late, for too long.
        """
        if patience != self._patience:
            self._set(patience)
        self._silence.tick()
        if self._sign is None or self._sign.step >= our_step:  # nobody waits for it
            self._delay.restart()
            self._long_delay.restart()
        elif self._sign.takes_long:
            self._long_delay.tick()
        else:
            self._delay.tick()
