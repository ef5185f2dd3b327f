"""Work spread over processes, with its results in order."""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from diffusion_policy.common.errors import EnvWorkerError
from diffusion_policy.common.orphans import Lifeline, die_with
from diffusion_policy.common.waiting import Patience, Waiting, describe_process, wait_until

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = Patience(limit_s=3600.0)  # with one item; they take seconds


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    patience: Patience = PATIENCE,
) -> Iterator[Result]:
    """``map(function, items)``, computed by several processes; by this one if one is enough.

    The processes are killed when this one dies.

    Args:
        patience: with the next result.

    Raises:
        EnvWorkerError: if a process dies, or does not go on.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    with contextlib.closing(Lifeline()) as lifeline:
        # Fresh interpreters: forking a process that has loaded SDL or OpenMP is not safe everywhere
        executor = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=die_with,
            initargs=(lifeline.theirs,),
        )
        try:
            for future in [executor.submit(function, item) for item in items]:
                yield _result(future, executor, patience)
        except BrokenProcessPool as error:
            raise EnvWorkerError(
                "a worker process died (killed, or out of memory); nothing was written, run again, "
                "with fewer --workers if memory is short"
            ) from error
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[Result], executor: ProcessPoolExecutor, patience: Patience) -> Result:
    def whom() -> str:
        pids = list(executor._processes or ())
        return f"one of the worker processes ({'; '.join(map(describe_process, pids))})"

    remedy = "nothing was written, run again"
    waiting = Waiting(patience, whom, "finish its part", remedy, EnvWorkerError)
    wait_until(lambda seconds: wait([future], seconds).done, waiting)
    return future.result()
