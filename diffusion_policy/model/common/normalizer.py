"""Affine maps between the units of a task and the range that a network likes.

Per field ``y = x * scale + offset``, with one scale and one offset per dimension. The statistics
they were fitted on travel with them, in the checkpoint: a policy carries its own units.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.model.common.dict_of_tensor_mixin import DictOfTensorMixin

DEFAULT_FIELD = "_default"
EMPTY = "The normalizer is empty: fit it, or load a checkpoint, before using it."


class UnknownFieldError(ConfigError, KeyError):
    """A key that the normalizer was not fitted on."""

    __str__ = Exception.__str__  # KeyError would print the repr of the sentence


class NotFittedError(ConfigError, RuntimeError):
    """A normalizer that is used before it was fitted or loaded."""


class SingleFieldLinearNormalizer(DictOfTensorMixin):
    """The map of one field, all parameters (D,): scale, offset, input_stats.{min,max,mean,std}."""

    avaliable_modes = ["limits", "gaussian"]

    @torch.no_grad()
    def fit(self, data: Any, **kwargs) -> None:
        """Fits the map to ``data``; the options are those of :func:`_fit`."""
        self.params_dict = _fit(data, **kwargs)

    @classmethod
    def create_fit(cls, data: Any, **kwargs) -> "SingleFieldLinearNormalizer":
        """A normalizer fitted to ``data``."""
        normalizer = cls()
        normalizer.fit(data, **kwargs)
        return normalizer

    @classmethod
    def create_manual(
        cls, scale: Any, offset: Any, input_stats_dict: Mapping[str, Any]
    ) -> "SingleFieldLinearNormalizer":
        """A normalizer with the given numbers.

        Raises:
            ConfigError: ``offset`` or a statistic differs from ``scale`` in shape or dtype.
        """
        scale = _as_tensor(scale).flatten()
        params = {"offset": offset, **input_stats_dict}
        params = {name: _as_tensor(value).flatten() for name, value in params.items()}
        for name, value in params.items():
            if value.shape != scale.shape or value.dtype != scale.dtype:
                raise ConfigError(
                    "A normalizer needs everything in the shape and dtype of scale, "
                    f"{tuple(scale.shape)} {scale.dtype}, but {name} is {tuple(value.shape)} "
                    f"{value.dtype}."
                )
        offset = params.pop("offset")
        return cls(_params(scale, offset, params))

    @classmethod
    def create_identity(cls, dtype: torch.dtype = torch.float32) -> "SingleFieldLinearNormalizer":
        """The map that changes nothing, for any shape."""
        stats = {"min": -1.0, "max": 1.0, "mean": 0.0, "std": 1.0}
        return cls.create_manual(
            scale=torch.ones(1, dtype=dtype),
            offset=torch.zeros(1, dtype=dtype),
            input_stats_dict={name: torch.tensor([v], dtype=dtype) for name, v in stats.items()},
        )

    def normalize(self, x: Any) -> Tensor:
        """``x * scale + offset``: a new tensor, on the device and in the dtype of ``scale``."""
        return _normalize(x, self.params_dict)

    def unnormalize(self, x: Any) -> Tensor:
        """``(x - offset) / scale``, the inverse of :meth:`normalize`."""
        return _unnormalize(x, self.params_dict)

    def get_input_stats(self) -> Any:
        """``{min, max, mean, std}`` of the data of the fit, in its units."""
        return self.params_dict["input_stats"]

    def get_output_stats(self) -> dict[str, Tensor]:
        """The statistics pushed through the map, ``std`` with the offset too: use min and max."""
        return {name: self.normalize(value) for name, value in self.get_input_stats().items()}

    def __call__(self, x: Any) -> Tensor:
        return self.normalize(x)


class LinearNormalizer(DictOfTensorMixin):
    """One affine map per field of a dictionary; a bare array is the field ``_default``."""

    avaliable_modes = ["limits", "gaussian"]

    @torch.no_grad()
    def fit(self, data: Any, **kwargs) -> None:
        """Fits one map per key of ``data`` (a mapping), or one for a bare array.

        Args:
            data: arrays (..., D): numpy, torch or zarr.
            **kwargs: the options of :func:`_fit`, the same for every field.
        """
        fields = data if isinstance(data, Mapping) else {DEFAULT_FIELD: data}
        for name, value in fields.items():
            self[name] = SingleFieldLinearNormalizer(_fit(value, field=name, **kwargs))

    def normalize(self, x: Any) -> Any:
        """Maps a tensor, or every entry of a dictionary, into the network's range.

        Raises:
            UnknownFieldError: a key was not fitted (also a ``KeyError``).
            NotFittedError: a bare tensor, and there is no ``_default`` field (also a
                ``RuntimeError``).
            ConfigError: the trailing dimensions do not hold the D values of the fit.
        """
        return self._map(_normalize, x)

    def unnormalize(self, x: Any) -> Any:
        """Maps back into the units of the task; raises as :meth:`normalize`."""
        return self._map(_unnormalize, x)

    def _map(self, function: Callable[..., Tensor], x: Any) -> Any:
        if isinstance(x, Mapping):
            return {name: function(value, self._field(name), name) for name, value in x.items()}
        if DEFAULT_FIELD not in self.params_dict:
            raise NotFittedError(
                f"The normalizer has {_names(self.params_dict)} but was given a bare array: fit it "
                "on a bare array, or pass a dictionary with the names of its fields."
            )
        return function(x, self.params_dict[DEFAULT_FIELD])

    def _field(self, name: str) -> nn.ParameterDict:
        if name not in self.params_dict:
            raise UnknownFieldError(
                f"The normalizer has {_names(self.params_dict)} but not {name!r}: fit it on data "
                f"that holds {name!r}, or leave that key out."
            )
        return self.params_dict[name]  # pyright: ignore[reportReturnType]

    def get_input_stats(self) -> Any:
        """Statistics of the data of the fit.

        Returns:
            ``{field: {min, max, mean, std}}``; without the level of the fields if ``_default`` is
            the only one.

        Raises:
            NotFittedError: there is no field (also a ``RuntimeError``).
        """
        return self._per_field(SingleFieldLinearNormalizer.get_input_stats)

    def get_output_stats(self, key: str = DEFAULT_FIELD) -> dict[str, Any]:
        """:meth:`get_input_stats` pushed through the maps; ``key`` has no meaning."""
        return self._per_field(SingleFieldLinearNormalizer.get_output_stats)

    def _per_field(self, stats: Callable[[SingleFieldLinearNormalizer], Any]) -> Any:
        names = list(self.params_dict.keys())
        if not names:
            raise NotFittedError(EMPTY)
        if names == [DEFAULT_FIELD]:
            return stats(self[DEFAULT_FIELD])
        return {name: stats(self[name]) for name in names if name != DEFAULT_FIELD}

    def __call__(self, x: Any) -> Any:
        return self.normalize(x)

    def __getitem__(self, key: str) -> SingleFieldLinearNormalizer:
        return SingleFieldLinearNormalizer(self._field(key))

    def __setitem__(self, key: str, value: SingleFieldLinearNormalizer) -> None:
        if "." in key or hasattr(nn.ParameterDict, key):
            raise ConfigError(
                f"A normalizer cannot have a field {key!r}: state-dict keys are split at dots, and "
                "names of dictionary methods are taken; rename the key in the data set."
            )
        self.params_dict[key] = value.params_dict


def range_scale_offset(
    minimum: Tensor, maximum: Tensor, output_min: float, output_max: float, range_eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and offset (D,) that map [minimum, maximum] to [output_min, output_max].

    A dimension that (almost) never moves, range < ``range_eps``, is only shifted to the middle of
    the output range: stretching it would blow up its noise.
    """
    extent = maximum - minimum
    constant = extent < range_eps
    extent = torch.where(constant, output_max - output_min, extent)
    scale = (output_max - output_min) / extent
    middle = (output_max + output_min) / 2
    offset = torch.where(constant, middle - minimum, output_min - scale * minimum)
    return scale, offset


def _fit(
    data: Any,
    last_n_dims: int = 1,
    dtype: torch.dtype | None = torch.float32,
    mode: str = "limits",
    output_max: float = 1.0,
    output_min: float = -1.0,
    range_eps: float = 1e-4,
    fit_offset: bool = True,
    field: str = DEFAULT_FIELD,
) -> nn.ParameterDict:
    """Scale, offset and statistics of ``data``.

    Args:
        data: numpy, torch or zarr array. The last ``last_n_dims`` dimensions together are D, the
            others are rows.
        last_n_dims: 0 gives one number for everything (D = 1).
        dtype: of the result; None keeps that of the data.
        mode: ``limits`` maps min and max to the output range, ``gaussian`` mean and std to 0 and 1.
        output_max: upper end of the output range (``limits``).
        output_min: lower end of the output range (``limits``).
        range_eps: dimensions whose range (``limits``) or std (``gaussian``) is smaller keep their
            scale.
        fit_offset: False keeps zero at zero.
        field: name for error messages.

    Raises:
        ConfigError: an unknown mode, or an output range that cannot be.
        DataError: no rows, or values that are not finite.
    """
    _check_fit_options(mode, output_min, output_max, fit_offset)
    data = _as_tensor(data)
    data = data.to(dtype) if dtype is not None else data
    width = math.prod(data.shape[data.ndim - last_n_dims :])
    _check_not_empty(data, field)
    data = data.reshape(-1, width)
    _check_finite(data, field)

    stats = {
        "min": data.amin(dim=0),
        "max": data.amax(dim=0),
        "mean": data.mean(dim=0),
        "std": data.std(dim=0),
    }
    if mode == "gaussian":
        std = stats["std"]
        # A single row has no std (NaN): treat its dimensions as constant.
        scale = 1 / torch.where(std >= range_eps, std, 1.0)
        offset = -stats["mean"] * scale if fit_offset else torch.zeros_like(scale)
    elif fit_offset:
        scale, offset = range_scale_offset(
            stats["min"], stats["max"], output_min, output_max, range_eps
        )
    else:
        reach = min(abs(output_min), abs(output_max))
        largest = torch.maximum(stats["min"].abs(), stats["max"].abs())
        scale = reach / torch.where(largest < range_eps, reach, largest)
        offset = torch.zeros_like(scale)
    return _params(scale, offset, stats)


def _check_fit_options(mode: str, output_min: float, output_max: float, fit_offset: bool) -> None:
    if mode not in LinearNormalizer.avaliable_modes:
        raise ConfigError(
            f"The normalizer mode is {mode!r}; it can be one of {LinearNormalizer.avaliable_modes}."
        )
    if output_max <= output_min:
        raise ConfigError(
            f"The normalizer's output range is empty: output_min={output_min}, "
            f"output_max={output_max}."
        )
    if mode == "limits" and not fit_offset and not output_min < 0 < output_max:
        raise ConfigError(
            "Without offset (fit_offset=False) zero stays at zero, so the output range must "
            f"contain it, but it is [{output_min}, {output_max}]."
        )


def _check_not_empty(data: Tensor, field: str) -> None:
    if data.numel() == 0:
        raise DataError(
            f"Field {field!r} has shape {tuple(data.shape)}, no values to fit the normalizer on: "
            "the data set is empty."
        )


def _check_finite(data: Tensor, field: str) -> None:
    finite = torch.isfinite(data).all(dim=1)
    if not finite.all():
        bad = torch.nonzero(~finite)[:, 0]
        raise DataError(
            f"Field {field!r} holds NaN or infinite values in {len(bad)} of {len(data)} rows, the "
            f"first is row {int(bad[0])}: repair the data set or remove those episodes."
        )


def _params(scale: Tensor, offset: Tensor, stats: Mapping[str, Tensor]) -> nn.ParameterDict:
    params = nn.ParameterDict(
        {"scale": scale, "offset": offset, "input_stats": nn.ParameterDict(dict(stats))}
    )
    return params.requires_grad_(False)


def _normalize(x: Any, params: nn.ParameterDict, name: str | None = None) -> Tensor:
    x, scale, offset = _rows(x, params, name)
    return (x.reshape(-1, len(scale)) * scale + offset).reshape(x.shape)


def _unnormalize(x: Any, params: nn.ParameterDict, name: str | None = None) -> Tensor:
    x, scale, offset = _rows(x, params, name)
    return ((x.reshape(-1, len(scale)) - offset) / scale).reshape(x.shape)


def _rows(x: Any, params: nn.ParameterDict, name: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` where ``scale`` is, after the check that its trailing dimensions hold D values."""
    if "scale" not in params:
        raise NotFittedError(EMPTY)
    scale: Tensor = params["scale"]  # pyright: ignore[reportAssignmentType]
    offset: Tensor = params["offset"]  # pyright: ignore[reportAssignmentType]
    x = _as_tensor(x)
    widths = [math.prod(x.shape[i:]) for i in range(x.ndim + 1)]
    if len(scale) not in widths:
        subject, field = ("The input", "") if name is None else (name, f" of field {name!r}")
        raise ConfigError(
            f"{subject} has {x.shape[-1] if x.ndim else 1} values per step, but the normalizer"
            f"{field} was fitted on {len(scale)}; use the data set or the checkpoint that belongs "
            "to this configuration."
        )
    return x.to(device=scale.device, dtype=scale.dtype), scale, offset


def _as_tensor(x: Any) -> Tensor:
    """Torch tensors as they are; numpy and zarr arrays (read whole) as tensors."""
    return x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))


def _names(params_dict: nn.ParameterDict) -> str:
    names = sorted(params_dict.keys())
    return f"the fields {names}" if names else "no fields (it was not fitted)"
