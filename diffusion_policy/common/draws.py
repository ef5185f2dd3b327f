"""Random numbers for the rows of a batch, whoever computes them.

During an evaluation a row is an episode, and what becomes of it must not depend on which episodes
happen to be computed next to it: :class:`Draws`.

In training, several processes may share a batch, and each row must get the numbers that it gets
when one process computes them all: :func:`draw_rows`.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# One generator for the whole batch; one per row: a row's numbers then depend on its own only; or
# None, torch's global one.
Generators = torch.Generator | list[torch.Generator] | None


class Draws:
    """Draws for B rows, from one generator or from one per row.

    Numbers are drawn where the generators live, so that an episode sees the same ones on every
    device, and arrive on ``device``.
    """

    def __init__(self, generator: Generators, batch_size: int, device: torch.device):
        self.generators = generator if isinstance(generator, list) else [generator]
        self.rows_each = 1 if isinstance(generator, list) else batch_size
        first = self.generators[0]
        self.home = device if first is None else first.device
        self.device = device

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) from U(0, 1)."""
        return self._rows(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) from N(0, 1)."""
        return self._rows(torch.randn, shape)

    def _rows(self, function: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        shape = (self.rows_each, *shape)
        parts = [function(shape, generator=g, device=self.home) for g in self.generators]
        return torch.cat(parts).to(self.device)

    def choice(self, probabilities: Tensor, n: int) -> Tensor:
        """(B, ..., n) draws with replacement: indices into the last axis of (B, ..., N)."""
        # Moved at once: group by group, a device would be waited for B times.
        groups = probabilities.to(self.home).split(self.rows_each)
        parts = [
            torch.multinomial(group.flatten(0, -2), n, replacement=True, generator=g)
            for group, g in zip(groups, self.generators, strict=True)
        ]
        return torch.cat(parts).view(*probabilities.shape[:-1], n).to(self.device)


class PartOfBatch:
    """The rows of a training batch that this process computes, and two streams of random numbers.

    Within :meth:`active`, torch's global generators run a stream of this process alone, which
    dropout draws from. :func:`draw_rows` draws from the stream that all processes have in common,
    for all rows of the batch, and keeps those of this part. Outside, the common stream is the
    global one, as if there was one process.

    Args:
        start, stop: of the rows.
        n_rows: of the whole batch.
        own_stream: state of this process' generators, as :func:`get_generators` returns it. Moved
            on in place.
        device: where draws may take place, besides the CPU.
    """

    def __init__(
        self, start: int, stop: int, n_rows: int, own_stream: list[Tensor], device: torch.device
    ):
        self.start, self.stop, self.n_rows = start, stop, n_rows
        self._streams = own_stream  # the one that is not running
        self._device = device

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes this the part that :func:`draw_rows` draws for."""
        global _part
        self._switch()
        _part = self
        try:
            yield
        finally:
            _part = None
            self._switch()

    def draw(self, function: Callable[[int], Tensor], n_rows: int) -> Tensor:
        """``function(n)`` of the whole batch, cut down to this part.

        Args:
            n_rows: of this part, or a multiple: a batch of windows may be drawn for frame by frame.
        """
        per_row, rest = divmod(n_rows, self.stop - self.start)
        if rest:
            raise ValueError(f"{n_rows} rows are drawn for {self.stop - self.start} items")
        self._switch()
        try:
            numbers = function(per_row * self.n_rows)
        finally:
            self._switch()
        return numbers[per_row * self.start : per_row * self.stop]

    def _switch(self) -> None:
        running = get_generators(self._device)
        set_generators(self._streams, self._device)
        self._streams[:] = running


_part: PartOfBatch | None = None


def draw_rows(function: Callable[[int], Tensor], n_rows: int) -> Tensor:
    """Random numbers for the rows of a training batch.

    Args:
        function: of a number of rows; draws so many (n, ...) from torch's global generators.
        n_rows: of the batch at hand, which may be a part of a larger one.
    """
    return function(n_rows) if _part is None else _part.draw(function, n_rows)


def get_generators(device: torch.device) -> list[Tensor]:
    """State of torch's global generators: of the CPU and, if it is another one, of ``device``."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_generators(states: list[Tensor], device: torch.device) -> None:
    """Restores what :func:`get_generators` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
