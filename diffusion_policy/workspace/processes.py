"""The processes that train one run together, and how they share its batches.

Process 0 leads: it has the command line, it alone writes, rolls out and validates. The others
follow: they get configuration and run directory from it and compute their rows of every batch.
``dataloader.batch_size`` is the size of the whole batch, whatever the number of processes, and
every row sees the same random numbers (:mod:`diffusion_policy.common.draws`), so the losses are
those of one process, up to rounding; dropout and batch statistics excepted, which each process has
for itself.

Hugging Face Accelerate averages the gradients (torch's DistributedDataParallel) and computes in
mixed precision. The common case, one process and single precision, does not import it.
"""

import contextlib
import datetime
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from diffusion_policy.common.device import resolve_device
from diffusion_policy.common.draws import PartOfBatch, get_generators, set_generators
from diffusion_policy.common.errors import (
    ConfigError,
    DeviceError,
    ProcessDiedError,
    ProcessTimeoutError,
    message_of,
)
from diffusion_policy.common.waiting import Patience
from diffusion_policy.dataset.batching import rows_of_process
from diffusion_policy.workspace.launch import die_with_launcher, process_count, process_index
from diffusion_policy.workspace.rng import get_rng_state, set_rng_state
from diffusion_policy.workspace.signs_of_life import TIMEOUT_S, SignsOfLife, patience_of

# Collective operations wait for ever: others wait while process 0 rolls out, which may take hours.
# A process that died closes its connections; one that is stopped gives no signs of life.
_FOR_EVER = datetime.timedelta(days=365)
# The launcher ends this process when another one has ended, and has the last word.
_LAST_WORD_S = 5.0
_LOST = re.compile(r"Connection (closed|reset) by peer|Broken pipe|remote process exited", re.I)

_signs: SignsOfLife | None = None  # while the processes are connected


@contextlib.contextmanager
def connected() -> Iterator[Callable[[Any], Any]]:
    """Connects the processes of a run, while this is open.

    Yields:
        :func:`exchange`.
    """
    global _signs
    import torch.distributed as dist

    die_with_launcher()
    index, count = process_index(), process_count()
    store, notes = _meet_first()
    # Both at once: objects travel over gloo, gradients over what fits the device.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with SignsOfLife(notes, index, count, Patience(TIMEOUT_S)) as _signs:
        try:
            dist.init_process_group(
                backend, store=store, rank=index, world_size=count, timeout=_FOR_EVER
            )
            yield exchange
        except RuntimeError as error:
            if not _LOST.search(str(error)):
                raise
            time.sleep(_LAST_WORD_S)
            raise ProcessDiedError(
                "the connection to another process of the run was lost: it has ended; its own last "
                "words say why, the run continues from its last checkpoint"
            ) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            _signs = None


def _meet_first() -> tuple[Any, Any]:
    """Where the processes find each other, and where they write their signs of life: a connection
    of its own to the same place, since the process group blocks the other one.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = datetime.timedelta(seconds=TIMEOUT_S)
    try:
        store, *_ = next(rendezvous("env://", timeout=limit))
        own = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            address, port, is_master=False, wait_for_workers=False, timeout=limit
        )
    except dist.DistError as error:
        raise ProcessTimeoutError(
            f"the processes of the run have not met: {message_of(error)}; start it again"
        ) from error
    notes = dist.PrefixStore("signs of life", own)  # pyright: ignore[reportPrivateImportUsage]
    return store, notes


def be_patient(training: Any) -> None:
    """From now on the processes wait for each other as :func:`.signs_of_life.patience_of` says."""
    if _signs is not None:
        _signs.be_patient(patience_of(training))


def exchange(value: Any) -> Any:
    """Returns what process 0 called this with; every process has to call it."""
    if process_count() == 1:
        return value
    import torch.distributed as dist

    _meet()
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def _meet() -> None:
    if _signs is not None:
        _signs.meet()


class Processes:
    """This process among those of the run.

    Args:
        training: the ``training`` block of the configuration: ``device`` and, where it has them,
            ``mixed_precision`` (see ``check_training_options``) and ``seed``.

    Attributes:
        index, count: of this process; of processes.
        device: the one that this process computes on.

    Raises:
        DeviceError: there are fewer GPUs than processes.
    """

    def __init__(self, training: DictConfig):
        self.index, self.count = process_index(), process_count()
        self.mixed_precision = training.get("mixed_precision") or "no"
        self._seed = training.seed
        self._accelerator: Any = None
        self._weight = 1.0  # of this process' rows in the mean over a batch
        self._own_stream: list[Tensor] = []
        self._losses: Callable[[dict[str, Any]], dict[str, Tensor]]
        self.device = resolve_device(training.device)
        if self.count > 1 or self.mixed_precision != "no":
            self._accelerator = self._make_accelerator()
        if self.count > 1 and self.device.type != "cpu":
            self.device = self._accelerator.device  # the GPU of this process

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def _make_accelerator(self) -> Any:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        local_count = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        if self.device.type == "cuda" and local_count > torch.cuda.device_count():
            raise DeviceError(
                f"{local_count} processes were started but this machine has "
                f"{torch.cuda.device_count()} GPUs; set training.num_processes to at most that, or "
                "training.device=cpu"
            )
        # Policies have parameters that no loss reaches: frozen ones, placeholders of old names.
        ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
        return Accelerator(
            device_placement=False,  # the policy is where it belongs already
            cpu=self.device.type == "cpu",
            mixed_precision=self.mixed_precision,
            kwargs_handlers=[ddp],
        )

    # ---- agreement -------------------------------------------------------------------------------

    def check_agreement(self, what: str, value: Any, remedy: str) -> None:
        """Makes sure that a value is the same everywhere.

        Raises:
            ConfigError: it is not, said on the processes that differ from process 0.
        """
        expected = exchange(value)
        if value != expected:
            raise ConfigError(
                f"{what} is {value} for process {self.index} but {expected} for process 0; {remedy}"
            )

    def start_epoch(self, epoch: int) -> None:
        """Lets all processes go on with the random numbers of process 0.

        They differ after process 0 alone has evaluated. What is each process' own depends on the
        epoch only, so a resumed run needs no record of it.
        """
        if self.count == 1:
            return
        if _signs is not None:
            _signs.now(f"training epoch {epoch}")
        state = exchange(get_rng_state())
        if state["cuda"]:  # process 0 draws on its first device, each process on its own
            state["cuda"] = state["cuda"][:1] * torch.cuda.device_count()
        set_rng_state(state)
        common = get_generators(self.device)
        torch.manual_seed((self._seed * 1_000_003 + epoch) * 1_009 + self.index)
        self._own_stream = get_generators(self.device)
        set_generators(common, self.device)

    @contextlib.contextmanager
    def doing(self, what: str, takes_long: bool = False) -> Iterator[None]:
        """Within this, other processes that wait for this one know what it is doing.

        Args:
            what: in words.
            takes_long: they wait for as long as it lives, whatever the limit of waiting is.
        """
        with contextlib.nullcontext() if _signs is None else _signs.doing(what, takes_long):
            yield

    # ---- sharing a batch -------------------------------------------------------------------------

    @contextlib.contextmanager
    def sharing(self, n_rows: int) -> Iterator[None]:
        """Within this, the batch at hand is this process' part of ``n_rows`` rows."""
        if self.count == 1:
            yield
            return
        _meet()
        rows = rows_of_process(n_rows, self.index, self.count)
        self._weight = len(rows) / n_rows
        rows = rows or range(1)  # fewer rows than processes: computed, but it does not count
        part = PartOfBatch(rows.start, rows.stop, n_rows, self._own_stream, self.device)
        with part.active():
            yield

    def distribute(
        self, policy: nn.Module, losses: Callable[[dict[str, Any]], dict[str, Tensor]]
    ) -> None:
        """Says what :meth:`losses` computes.

        Args:
            policy: what the losses train.
            losses: of a batch. Its values are scalars, means over the rows.
        """
        self._losses = losses
        if self._accelerator is not None:
            _meet()
            self._losses = self._accelerator.prepare(_Losses(policy, losses))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The losses of this process' rows, in the precision of the run; :meth:`backward` then
        averages their gradients over the processes.
        """
        return self._losses(batch)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision of the run, for losses outside of :meth:`losses`."""
        return (
            contextlib.nullcontext() if self._accelerator is None else self._accelerator.autocast()
        )

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss that is the mean over this process' rows."""
        if self.count > 1:
            # DistributedDataParallel takes the mean over processes: undone, to weigh them by rows.
            loss = loss * (self._weight * self.count)
        loss.backward()

    def mean(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars of this process' rows, as means over the whole batch, without gradient."""
        losses = {key: value.detach() for key, value in losses.items()}
        if self.count == 1:
            return losses
        import torch.distributed as dist

        _meet()
        values = torch.stack([value.float() for value in losses.values()]) * self._weight
        dist.all_reduce(values)
        return dict(zip(losses, values, strict=True))


class _Losses(nn.Module):
    """The losses of a batch as a module's forward pass: what Accelerate wraps."""

    def __init__(self, policy: nn.Module, losses: Callable[[dict[str, Any]], dict[str, Tensor]]):
        super().__init__()
        self.policy = policy
        self.losses = losses

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.losses(batch)
