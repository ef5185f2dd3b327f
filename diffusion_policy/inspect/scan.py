"""One pass over the values of an array: its range, what is damaged, what is odd."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import zarr

from diffusion_policy.dataset.demonstrations import describe_step
from diffusion_policy.inspect.chunks import Block, iter_blocks
from diffusion_policy.inspect.layout import Finding
from diffusion_policy.storage.nodes import compressor_of

Kind: TypeAlias = Literal["low_dim", "image", "other"]

MAX_LOW_DIM = 256  # values per step; above, no single one of them is looked at
MIN_IMAGE_SIDE = 8  # pixels: (T, 9, 2) are key points, (T, 9, 9, 3) could be a picture
CONSTANT_BELOW = 1e-4  # the range_eps of the normalizer
JUMP_FACTOR = 20.0  # how much farther than usual a step must be to be called a jump
USUAL_PERCENTILE = 99.0
N_PLACES = 3  # so many places are named in a sentence

#: Told how many more bytes of decoded values were read.
Progress: TypeAlias = Callable[[int], object]


@dataclass
class KeySummary:
    """What one array holds.

    ``minimum``, ``maximum``, ``mean`` are over the finite values: (D,) for low-dimensional keys,
    one number for others; NaN where there is no value. ``scale`` and ``offset`` (D,) are those of
    the ``limits`` normalizer, None where it cannot be fitted. ``values`` (steps, D) are those of a
    low-dimensional key, NaN where they are not readable.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    compressor: str
    n_bytes: int
    minimum: np.ndarray
    maximum: np.ndarray
    mean: np.ndarray
    scale: np.ndarray | None = None
    offset: np.ndarray | None = None
    values: np.ndarray | None = field(default=None, repr=False)

    @property
    def dim_names(self) -> list[str]:
        """``['[0]', '[1]']``, or of several axes ``['[0,0]', '[0,1]', ...]``."""
        if self.kind != "low_dim":
            return [""]
        axes = self.shape[1:]
        return [f"[{','.join(map(str, i))}]" if axes else "" for i in np.ndindex(*axes)]


def kind_of(shape: Sequence[int], dtype: np.dtype) -> Kind:
    """Images end in (height, width, 1, 3 or 4 channels); few numbers per step are low-dimensional.

    What is neither (depth, point clouds, text) is ``other``.
    """
    if dtype.kind not in "biuf":
        return "other"
    is_image = len(shape) >= 4 and shape[-1] in (1, 3, 4) and min(shape[-3:-1]) >= MIN_IMAGE_SIDE
    if is_image:
        return "image"
    return "low_dim" if math.prod(shape[1:]) <= MAX_LOW_DIM else "other"


def scan_key(
    name: str, array: zarr.Array, ends: np.ndarray, n_bytes: int, progress: Progress
) -> tuple[KeySummary, list[Finding]]:
    """Read the steps of all episodes of an array, a block of chunks at a time.

    Args:
        name: the key.
        array: ``(N, ...)``; rows behind the last end are left alone.
        ends: exclusive end of every episode, increasing.
        n_bytes: its size on disk.
        progress: called after every block.

    Returns:
        What the array holds, and what is wrong with it.
    """
    kind = kind_of(array.shape, array.dtype)
    reader = _Reader(name, array, ends, progress)
    if kind == "low_dim":
        values = reader.read_all()
        stats = _statistics(values)
    else:
        values = None
        stats = reader.read_statistics()
    summary = KeySummary(
        name=name,
        kind=kind,
        shape=array.shape,
        dtype=str(array.dtype),
        chunks=array.chunks,
        compressor=describe_compressor(array),
        n_bytes=n_bytes,
        **stats,
        values=values,
    )
    findings = reader.findings()
    if values is not None and reader.n_rows:
        _fit(summary, is_finite=not reader.not_finite)
        findings += find_constants(summary)
        findings += find_jumps(name, values, summary.dim_names, ends)
    return summary, findings


class _Reader:
    """Reads an array block by block and notes what is damaged."""

    def __init__(self, name: str, array: zarr.Array, ends: np.ndarray, progress: Progress):
        self.name, self.array, self.ends, self.progress = name, array, ends, progress
        self.n_rows = min(array.shape[0], int(ends[-1]) if len(ends) else 0)
        self.unreadable: list[Block] = []
        self.not_finite: list[int] = []  # rows

    def read_all(self) -> np.ndarray:
        """Everything: (n_rows, D), as floats."""
        width = math.prod(self.array.shape[1:])
        dtype = np.result_type(self.array.dtype, np.float32)
        values = np.full((self.n_rows, width), np.nan, dtype)
        for block in self._blocks():
            if block.values is not None:
                values[block.rows] = block.values.reshape(-1, width)
        return values

    def read_statistics(self) -> dict[str, np.ndarray]:
        """Range and mean of everything, as arrays (1,); in memory is one block at a time."""
        low, high, total, n = np.inf, -np.inf, 0.0, 0
        for block in self._blocks():
            values = block.values
            if values is None or values.size == 0 or values.dtype.kind not in "biuf":
                continue
            if self.not_finite and self.not_finite[-1] >= block.rows.start:
                values = values[np.isfinite(values)]
            if values.size:
                low, high = min(low, float(values.min())), max(high, float(values.max()))
                total, n = total + float(values.sum(dtype=np.float64)), n + values.size
        numbers = (low, high, total / n) if n else (np.nan, np.nan, np.nan)
        stats = (np.array([number]) for number in numbers)
        return dict(zip(("minimum", "maximum", "mean"), stats, strict=True))

    def _blocks(self):
        row_bytes = self.array.dtype.itemsize * math.prod(self.array.shape[1:])
        for block in iter_blocks(self.array, self.n_rows):
            if block.values is None:
                self.unreadable.append(block)
            elif block.values.dtype.kind == "f":
                self._note_not_finite(block.rows.start, block.values)
            yield block
            self.progress(row_bytes * (block.rows.stop - block.rows.start))

    def _note_not_finite(self, start: int, values: np.ndarray) -> None:
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf
            if np.isfinite(values.sum(dtype=np.float64)):  # one pass, without a mask as large
                return
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        self.not_finite += (start + np.flatnonzero(~finite)).tolist()

    def findings(self) -> list[Finding]:
        """One sentence on chunks, one on values."""
        found = []
        if self.unreadable:
            first, n_more = self.unreadable[0], len(self.unreadable) - 1
            rows = sum(block.rows.stop - block.rows.start for block in self.unreadable)
            more = f", and so are {n_more} further blocks of chunks" if n_more else ""
            place = describe_step(first.rows.start, self.ends)
            text = f"{self.name!r}: {first.problem}{more}; {rows} steps are lost, from {place} on"
            lost = tuple(block.rows for block in self.unreadable)
            found.append(Finding("damage", text, first.rows.start, self.name, lost))
        if self.not_finite:
            places = describe_places(self.not_finite, self.ends)
            text = f"{self.name!r} holds NaN or infinite values at {places}"
            lost = tuple(slice(row, row + 1) for row in self.not_finite)
            found.append(Finding("damage", text, self.not_finite[0], self.name, lost))
        return found


def describe_places(rows: Sequence[int], ends: np.ndarray) -> str:
    """``'step 2 of episode 7 (row 812), ... and at 4 further steps'``."""
    places = ", ".join(describe_step(row, ends) for row in rows[:N_PLACES])
    n_more = len(rows) - N_PLACES
    return f"{places} and at {n_more} further steps" if n_more > 0 else places


def describe_compressor(array: zarr.Array) -> str:
    """``'blosc zstd 5'``, ``'imagecodecs_jpeg2k 50'``, ``'none'``."""
    codec = compressor_of(array)
    if codec is None:
        return "none"
    config = codec.get_config() if hasattr(codec, "get_config") else {"id": type(codec).__name__}
    names = ("id", "cname", "clevel", "level")
    return " ".join(str(config[n]) for n in names if config.get(n) is not None)


def _statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    finite = np.isfinite(values)
    empty = ~finite.any(axis=0)

    def reduced(function: Callable, stand_in: float, **options) -> np.ndarray:
        result = function(np.where(finite, values, stand_in), axis=0, **options)
        return np.where(empty, np.nan, result)

    if len(values) == 0:
        return dict.fromkeys(("minimum", "maximum", "mean"), np.full(values.shape[1], np.nan))
    n = np.maximum(finite.sum(axis=0), 1)
    return {
        "minimum": reduced(np.min, np.inf),
        "maximum": reduced(np.max, -np.inf),
        "mean": reduced(np.sum, 0.0, dtype=np.float64) / n,
    }


def _fit(summary: KeySummary, is_finite: bool) -> None:
    """Scale and offset as ``LinearNormalizer.fit`` computes them, with every dimension for itself.

    It refuses values that are not finite.
    """
    import torch

    from diffusion_policy.model.common.normalizer import range_scale_offset

    if not is_finite or np.isnan(summary.minimum).any():
        return
    low = torch.as_tensor(summary.minimum, dtype=torch.float32)
    high = torch.as_tensor(summary.maximum, dtype=torch.float32)
    scale, offset = range_scale_offset(low, high, -1.0, 1.0, CONSTANT_BELOW)
    summary.scale, summary.offset = scale.numpy(), offset.numpy()


def find_constants(summary: KeySummary) -> list[Finding]:
    """Dimensions without information: the normalizer maps them to 0."""
    with np.errstate(invalid="ignore"):
        constant = np.flatnonzero(summary.maximum - summary.minimum < CONSTANT_BELOW)
    if len(constant) == 0:
        return []
    shown = ", ".join(
        f"{summary.dim_names[i]}={summary.minimum[i]:.4g}".lstrip("=") for i in constant[:8]
    )
    more = f" and {len(constant) - 8} more" if len(constant) > 8 else ""
    text = f"{summary.name!r} is constant in {shown}{more}: the normalizer maps it to 0"
    return [Finding("warning", text)]


def find_jumps(
    name: str, values: np.ndarray, dim_names: list[str], ends: np.ndarray
) -> list[Finding]:
    """Steps within an episode that are much larger than usual: a gap in the recording?

    Larger than 20 times the 99th percentile, per dimension. A dimension that hardly ever moves (a
    gripper that opens and closes) has a percentile of 0, and no jumps. An angle that starts again
    after a full turn, or after half a turn (of a bar or a square), did not jump either.

    Args:
        name: the key.
        values: (steps, D).
        dim_names: the names of the D dimensions.
        ends: exclusive end of every episode, increasing.
    """
    moves = np.abs(np.diff(values.astype(np.float64), axis=0))
    within = np.asarray(np.isfinite(moves).all(axis=1))
    within[[end - 1 for end in ends if end < len(values)]] = False  # to the next episode
    rows, moves = np.flatnonzero(within) + 1, moves[within]
    if len(rows) == 0:
        return []
    # Of few steps a percentile between two of them would be drawn up by a jump.
    usual = np.percentile(moves, USUAL_PERCENTILE, axis=0, method="lower")
    large = JUMP_FACTOR * usual
    jumps = (moves > large) & (usual > 0)
    for turn in (np.pi, 2 * np.pi):
        jumps &= np.abs(moves - turn) > large
    if not jumps.any():
        return []
    where, dims = np.flatnonzero(jumps.any(axis=1)), jumps.any(axis=0)
    first = where[0]
    dim = int(np.argmax(jumps[first]))
    more = f" ({np.sum(dims)} dimensions jump in all)" if np.sum(dims) > 1 else ""
    text = (
        f"{name!r}{dim_names[dim]} jumps by {moves[first, dim]:.4g}, where 99 % of the steps are "
        f"below {usual[dim]:.4g}{more}: a gap in the recording at "
        f"{describe_places(rows[where].tolist(), ends)}?"
    )
    return [Finding("warning", text, int(rows[first]))]
