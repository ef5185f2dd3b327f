"""A workspace: the attributes of one run, and how they are written to and read from a checkpoint.

A checkpoint file is a ``torch.save`` of ``{cfg, state_dicts, pickles}`` with dill as pickle module:
the layout that published checkpoints have, and that the original implementation reads. Everything
we add to it goes under further names in ``pickles``, in plain Python values, and is optional when
reading.
"""

import copy
import logging
import pathlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import dill
import torch
from omegaconf import DictConfig

import diffusion_policy.config  # noqa: F401  registers the resolvers that configs use
from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.checkpoint_util import atomic_write
from diffusion_policy.common.errors import CheckpointError, ConfigError
from diffusion_policy.common.safe_pickle import safe_loads
from diffusion_policy.workspace.checkpoint_config import configuration_of
from diffusion_policy.workspace.optimizer_state import check_optimizer

logger = logging.getLogger(__name__)


class BaseWorkspace:
    """Everything that makes up one run, as attributes.

    Attributes with ``state_dict`` and ``load_state_dict`` go into a checkpoint's ``state_dicts``;
    attributes named in ``include_keys`` go into its ``pickles``.

    Args:
        cfg: the resolved configuration; saved in every checkpoint.
        output_dir: where the run writes; None is the run directory of the current Hydra job.
    """

    include_keys: tuple[str, ...] = ()
    exclude_keys: tuple[str, ...] = ()

    def __init__(self, cfg: DictConfig, output_dir: str | None = None):
        self.cfg = cfg
        self._output_dir = output_dir
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: list[Future] = []

    @property
    def output_dir(self) -> str:
        if self._output_dir is not None:
            return self._output_dir
        from hydra.core.hydra_config import HydraConfig

        if not HydraConfig.initialized():
            raise ConfigError(
                "the workspace has no output directory; pass output_dir= or run it through train.py"
            )
        return HydraConfig.get().runtime.output_dir

    def run(self) -> None:
        """Does the work; overridden by every training workspace."""

    def get_eval_policy(self) -> torch.nn.Module:
        """The policy that evaluation uses: the averaged weights where there are any."""
        for name in ("ema_model", "model", "policy"):
            if getattr(self, name, None) is not None:
                return getattr(self, name)
        raise ConfigError(f"{type(self).__name__} has no policy (ema_model, model or policy)")

    # ---- writing ---------------------------------------------------------------------------------

    def get_checkpoint_path(self, tag: str = "latest") -> pathlib.Path:
        return pathlib.Path(self.output_dir) / "checkpoints" / f"{tag}.ckpt"

    def save_checkpoint(
        self,
        path: str | pathlib.Path | None = None,
        tag: str = "latest",
        exclude_keys: tuple[str, ...] | None = None,
        include_keys: tuple[str, ...] | None = None,
        use_thread: bool = True,
    ) -> str:
        """Writes a checkpoint; the previous file of that name stays until the new one is complete.

        The state is copied before this returns; with ``use_thread`` the file is written in the
        background, and an error of that write is raised by the next save or by
        :meth:`wait_for_checkpoints`.

        Returns:
            The absolute path of the file.

        Raises:
            CheckpointError: the file cannot be written (for example: the disk is full).
        """
        path = pathlib.Path(path) if path is not None else self.get_checkpoint_path(tag)
        payload = self._payload(exclude_keys, include_keys)
        self.wait_for_checkpoints()
        self._in_background(lambda: write_payload(payload, path))
        if not use_thread:
            self.wait_for_checkpoints()
        return str(path.absolute())

    def wait_for_checkpoints(self) -> None:
        """Returns when all checkpoint files are in place; raises what went wrong with one."""
        writing, self._writing = self._writing, []
        for future in writing:
            future.result()

    def _in_background(self, job) -> None:
        """Runs ``job()`` after all earlier background jobs; skipped when one of those failed."""
        earlier = list(self._writing)

        def run_unless_an_earlier_one_failed():
            if all(future.exception() is None for future in earlier):
                job()

        self._writing.append(self._writer.submit(run_unless_an_earlier_one_failed))

    def _payload(self, exclude_keys=None, include_keys=None) -> dict[str, Any]:
        exclude_keys = tuple(self.exclude_keys if exclude_keys is None else exclude_keys)
        include_keys = tuple(self.include_keys if include_keys is None else include_keys)
        include_keys += ("_output_dir",)
        payload: dict[str, Any] = {"cfg": self.cfg, "state_dicts": {}, "pickles": {}}
        for name, value in self.__dict__.items():
            if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
                if name not in exclude_keys:
                    payload["state_dicts"][name] = _cpu_copy(value.state_dict())
            elif name in include_keys:
                payload["pickles"][name] = dill.dumps(value)
        return payload

    # ---- reading ---------------------------------------------------------------------------------

    def load_payload(
        self,
        payload: dict[str, Any],
        exclude_keys: tuple[str, ...] | None = None,
        include_keys: tuple[str, ...] | None = None,
        trust: bool = False,
        **kwargs: Any,
    ) -> None:
        """Restores attributes from a payload; ``kwargs`` go to their ``load_state_dict``.

        The file chooses values, never names: of its ``pickles``, those in ``include_keys`` are
        restored. The output directory stays the one this workspace was made with.

        Args:
            include_keys: the only ones to restore; None: those that this class declares.
            trust: restore whatever the file names.

        Raises:
            CheckpointError: the payload does not fit this workspace, or is not safe to read.
        """
        for name, state in payload["state_dicts"].items():
            if exclude_keys and name in exclude_keys:
                continue
            self._load_state(name, state, **kwargs)
        for name, data in payload["pickles"].items():
            wanted = include_keys is None or name in include_keys
            if wanted and name != "_output_dir":
                self._load_value(name, data, trust)

    def _load_value(self, name: str, data: bytes, trust: bool) -> None:
        if trust:
            setattr(self, name, safe_loads(data, trust))
        elif name not in self.include_keys:
            logger.warning(
                "the checkpoint also holds a value %r, which %s does not have (include_keys); it "
                "is left out",
                name,
                type(self).__name__,
            )
        else:
            value = safe_loads(data, source=f"{name} of the checkpoint")
            self._check_value(name, value)
            setattr(self, name, value)

    def _check_value(self, name: str, value: Any) -> None:
        """A restored value has the type of the one that a new workspace has."""
        present = getattr(self, name, None)
        if present is not None and type(value) is not type(present):
            raise CheckpointError(
                f"{name} of the checkpoint is a {type(value).__name__}, but {type(self).__name__} "
                f"expects a {type(present).__name__}; the file is damaged, or of another workspace"
            )

    def _load_state(self, name: str, state: dict, **kwargs: Any) -> None:
        target: Any = self.__dict__.get(name)
        if not hasattr(target, "load_state_dict"):
            raise CheckpointError(
                f"the checkpoint holds {name!r}, but {type(self).__name__} with this "
                "configuration has none; "
                "use the configuration the checkpoint was made with"
            )
        try:
            _load(target, state, **kwargs)
        except Exception as error:  # torch checks little of what it is given
            reason = f"{type(error).__name__}: " if not isinstance(error, RuntimeError) else ""
            raise CheckpointError(
                f"{name!r} of the checkpoint does not fit {type(self).__name__} with this "
                "configuration; use the configuration the checkpoint was made with, or another "
                f"hydra.run.dir. {reason}{error}"
            ) from error

    def load_checkpoint(
        self,
        path: str | pathlib.Path | None = None,
        tag: str = "latest",
        exclude_keys: tuple[str, ...] | None = None,
        include_keys: tuple[str, ...] | None = None,
        trust: bool = False,
    ) -> dict[str, Any]:
        """Reads a checkpoint file into this workspace and returns its payload."""
        payload = load_payload(path or self.get_checkpoint_path(tag), trust=trust)
        self.load_payload(payload, exclude_keys, include_keys, trust=trust)
        return payload

    @classmethod
    def create_from_checkpoint(
        cls,
        path: str | pathlib.Path,
        exclude_keys: tuple[str, ...] | None = None,
        include_keys: tuple[str, ...] | None = None,
        output_dir: str | None = None,
        trust: bool = False,
    ) -> Self:
        """A workspace built from the configuration inside a checkpoint, in the checkpoint's
        state."""
        payload = load_payload(path, trust=trust)
        with configuration_of(payload, path, trust=trust) as cfg:
            workspace = cls(cfg, output_dir=output_dir)
        workspace.load_payload(payload, exclude_keys, include_keys, trust=trust)
        return workspace

    # ---- whole-object snapshots ------------------------------------------------------------------

    def save_snapshot(self, tag: str = "latest") -> str:
        """Pickles the whole workspace, code references and all; for short-lived experiments
        only."""
        path = pathlib.Path(self.output_dir) / "snapshots" / f"{tag}.pkl"
        atomic_write(path, lambda file: dill.dump(self, file, recurse=True))
        return str(path.absolute())

    @classmethod
    def create_from_snapshot(cls, path: str | pathlib.Path) -> Self:
        """Reads a snapshot. This runs code from the file: only for files you wrote yourself."""
        with open(path, "rb") as file:
            return dill.load(file)

    def __getstate__(self) -> dict[str, Any]:
        self.wait_for_checkpoints()
        return {k: v for k, v in self.__dict__.items() if k not in ("_writer", "_writing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing = []


def write_payload(payload: dict[str, Any], path: pathlib.Path) -> None:
    """Writes a checkpoint file atomically."""
    atomic_write(path, lambda file: torch.save(payload, file, pickle_module=dill))


def _load(target: Any, state: dict, **kwargs: Any) -> None:
    if not isinstance(target, torch.optim.Optimizer):
        target.load_state_dict(state, **kwargs)
        return
    before = [dict(group) for group in target.param_groups]
    target.load_state_dict(state, **kwargs)
    check_optimizer(target, before)


def _cpu_copy(value: Any) -> Any:
    """A copy that later training steps cannot change; tensors land on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = type(value)() if type(value) is not dict else {}
        copied.update({k: _cpu_copy(v) for k, v in value.items()})
        return copied
    if isinstance(value, list):
        return [_cpu_copy(v) for v in value]
    return copy.deepcopy(value)
