"""Work spread over processes, with its results in order."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from diffusion_policy.common.errors import EnvWorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """``map(function, items)``, computed by several processes; by this one if one is enough.

    Raises:
        EnvWorkerError: if a process dies.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    # Fresh interpreters: forking a process that has loaded SDL or OpenMP is not safe everywhere.
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from executor.map(function, items)
    except BrokenProcessPool as error:
        raise EnvWorkerError(
            "a worker process died (killed, or out of memory); nothing was written, run again, "
            "with fewer --workers if memory is short"
        ) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
