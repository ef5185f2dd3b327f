"""The training loop: one for all methods.

Read :meth:`TrainWorkspace.run` from top to bottom; that is the life of a run. A method's own
workspace states only what it does differently: its optimizer, its step, its extra metrics.

A run that is killed at any instant continues from its last checkpoint, and on a CPU it then ends
bit-identical to a run that was never killed; :mod:`.resume` knows how.

Several processes may share a run's batches (:mod:`.processes`). Each of them lives this life; what
only process 0 does is marked by ``self.processes.is_main``.
"""

import contextlib
import copy
import itertools
import logging
import os
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, open_dict
from tqdm.contrib.logging import logging_redirect_tqdm

from diffusion_policy.common.checkpoint_util import TopKCheckpointManager, link_or_copy
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.progress_bar import ProgressBar
from diffusion_policy.common.pytorch_util import dict_apply
from diffusion_policy.config.checks import check_config
from diffusion_policy.config.instantiate import instantiate
from diffusion_policy.config.targets import locate
from diffusion_policy.dataset.base_dataset import BaseImageDataset, BaseLowdimDataset
from diffusion_policy.dataset.batching import make_dataloader
from diffusion_policy.env_runner.base_image_runner import BaseImageRunner
from diffusion_policy.env_runner.base_lowdim_runner import BaseLowdimRunner
from diffusion_policy.model.common.lr_scheduler import get_scheduler
from diffusion_policy.workspace import resume
from diffusion_policy.workspace.base_workspace import BaseWorkspace
from diffusion_policy.workspace.data_check import check_data
from diffusion_policy.workspace.forecast import Forecast, describe_run, warn_about_kills
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.run_lock import locked_run
from diffusion_policy.workspace.run_logger import RunLogger
from diffusion_policy.workspace.step_log import StepLog
from diffusion_policy.workspace.stopwatch import Stopwatch

logger = logging.getLogger(__name__)


class TrainWorkspace(BaseWorkspace):
    """Trains ``self.model`` as ``cfg`` says.

    Attributes:
        model: the policy that is trained.
        ema_model: its moving average, which is what gets evaluated; None without
            ``training.use_ema``.
        global_step: number of batches seen. epoch: number of the running epoch.
        resume_state: all else that an identical continuation needs, in plain Python values.
    """

    include_keys = ("global_step", "epoch", "resume_state")
    # What is restored through resume_state: the original implementation must find only names it
    # knows.
    exclude_keys = ("lr_scheduler", "ema", "topk")

    def __init__(self, cfg: DictConfig, output_dir: str | None = None):
        super().__init__(cfg, output_dir)
        check_config(cfg)
        seed_everything(cfg.training.seed)
        self.model: Any = instantiate(cfg.policy)
        self.ema_model = copy.deepcopy(self.model) if cfg.training.get("use_ema") else None
        self.optimizer = self.make_optimizer()
        self.global_step = 0
        self.epoch = 0
        self.resume_state: dict[str, Any] = {}
        self._lasting = (*self.__dict__, "_lasting")

    def __getstate__(self) -> dict[str, Any]:
        """Without what :meth:`run` sets up: loaders, log files, processes."""
        return {k: v for k, v in super().__getstate__().items() if k in self._lasting}

    # ---- what a method may do differently --------------------------------------------------------

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over all parameters of the policy, as ``cfg.optimizer`` says."""
        target = locate(self.cfg.optimizer._target_, "optimizer._target_")
        options: dict[str, Any] = {}
        if target in (torch.optim.Adam, torch.optim.AdamW) and "foreach" not in self.cfg.optimizer:
            options["fused"] = True  # one kernel, not a loop over parameters
        return instantiate({**options, **self.cfg.optimizer}, params=self.model.parameters())

    def make_lr_scheduler(
        self, n_batches: int, last_step: int
    ) -> torch.optim.lr_scheduler.LambdaLR:
        """The schedule of the learning rate, as ``cfg.training`` says.

        Args:
            n_batches: in the whole run.
            last_step: the optimizer's last step so far; -1 at the start.
        """
        training = self.cfg.training
        return get_scheduler(
            training.lr_scheduler,
            optimizer=self.optimizer,
            num_warmup_steps=training.lr_warmup_steps,
            num_training_steps=n_batches // training.gradient_accumulate_every,
            last_epoch=last_step,
        )

    def losses(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """``train_loss`` of a batch, which is minimised, and other scalars to log with it."""
        return {"train_loss": self.model.compute_loss(batch)}

    def clip_gradients(self) -> None:
        """Called between the gradients of a batch and the update, if one is due: clips their norm
        to ``training.max_grad_norm``, where that is given.
        """
        max_norm = self.cfg.training.get("max_grad_norm")
        if max_norm is not None and self.update_is_due():
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def train_step(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """One batch: loss, gradients and, where it is due, an update of the weights.

        Returns:
            Scalars on the device, ``train_loss`` among them. They are read later: no
                synchronisation here.
        """
        losses = self.processes.losses(batch)
        self.processes.backward(losses["train_loss"] / self.cfg.training.gradient_accumulate_every)
        self.clip_gradients()
        if self.update_is_due():
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.model)
        return self.processes.mean(losses)

    def pending_gradients(self) -> dict[str, torch.Tensor]:
        """What the next update will be made of, so far; by name of the parameter."""
        parameters = self.model.named_parameters()
        return {name: p.grad for name, p in parameters if p.grad is not None}

    def update_is_due(self) -> bool:
        """Whether the weights change with this batch: every ``gradient_accumulate_every``-th, the
        first one included.
        """
        return self.global_step % self.cfg.training.gradient_accumulate_every == 0

    def validation_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Loss of a validation batch. With a moving average the raw model is used, in training
        mode.
        """
        with self.processes.autocast():
            return self.losses(batch)["train_loss"]

    def action_error(self, policy: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Mean squared error of the policy's actions on a training batch, in raw units squared."""
        obs, action = batch["obs"], batch["action"]
        result = policy.predict_action(obs if isinstance(obs, dict) else {"obs": obs})
        if result["action_pred"].shape[1] < action.shape[1]:  # it predicts what is executed only
            start = self.cfg.n_obs_steps - 1
            executed = action[:, start : start + self.cfg.n_action_steps]
            return F.mse_loss(result["action"], executed)
        return F.mse_loss(result["action_pred"], action)

    # ---- the life of a run -----------------------------------------------------------------------

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            self.set_up_processes(stack)
            self.continued_from = resume.load_last_checkpoint(self)
            self.set_up_data()
            self.set_up_schedule()
            self.apply_debug_limits()
            if self.processes.is_main:
                self.set_up_evaluation(stack)
            self.open_logs(stack)
            self.sampling_indices: list[int] | None = None
            self.sampling_batch: dict[str, Any] | None = None
            resume.restore(self)
            while self.epoch < self.settings.num_epochs:
                step_log = self.train_epoch()
                if self.processes.is_main:
                    with self.processes.doing("evaluating", takes_long=True):
                        step_log |= self.evaluate_epoch()
                    self.run_logger.log(step_log, step=self.global_step)
                    if self.is_due("checkpoint_every") or self.is_last_epoch():
                        self.write_checkpoints(step_log)
                    self.report_progress()
                self.global_step += 1
                self.epoch += 1
            self.wait_for_checkpoints()

    def is_due(self, every: str, epoch: int | None = None) -> bool:
        """Whether what happens ``every`` so many epochs happens after this one, or after
        ``epoch``.
        """
        return (self.epoch if epoch is None else epoch) % self.settings[every] == 0

    def is_last_epoch(self) -> bool:
        return self.epoch == self.settings.num_epochs - 1

    # ---- set-up ----------------------------------------------------------------------------------

    def set_up_processes(self, stack: contextlib.ExitStack) -> None:
        """The device of this process, and the run directory for this run alone."""
        self.processes = Processes(self.cfg.training)
        self.device = self.processes.device
        if self.processes.is_main:
            stack.enter_context(locked_run(self.output_dir))
        for policy in (self.model, self.ema_model):
            if policy is not None:
                policy.to(self.device)

    def _load_state(self, name: str, state: dict, **kwargs: Any) -> None:
        if name == "optimizer":  # keep our choice of kernel
            fused = self.optimizer.param_groups[0].get("fused")
            groups = [dict(group, fused=fused) for group in state["param_groups"]]
            state = dict(state, param_groups=groups)
        super()._load_state(name, state, **kwargs)

    def set_up_data(self) -> None:
        dataset = instantiate(self.cfg.task.dataset)
        if not isinstance(dataset, BaseLowdimDataset | BaseImageDataset):
            raise ConfigError(
                f"task.dataset is a {type(dataset).__name__}; expected a BaseLowdimDataset or "
                "BaseImageDataset"
            )
        check_data(dataset, self.cfg)
        processes = self.processes
        self.train_loader = make_dataloader(
            dataset, processes.index, processes.count, **self.cfg.dataloader
        )
        self.val_loader = make_dataloader(
            dataset.get_validation_dataset(), **self.cfg.val_dataloader
        )
        self.set_up_normalizer(dataset)
        processes.distribute(self.model, self.losses)

    def set_up_normalizer(self, dataset: Any) -> None:
        """Fits the normalizer on the data (also when resuming: the data decides, as it did at
        first)."""
        normalizer = dataset.get_normalizer()
        for policy in (self.model, self.ema_model):
            if policy is not None:
                policy.set_normalizer(normalizer)
                policy.to(self.device)

    def set_up_schedule(self) -> None:
        """Learning rate and moving average, each at the position where the run stands."""
        self.lr_scheduler = self.make_lr_scheduler(
            n_batches=len(self.train_loader) * self.cfg.training.num_epochs,
            last_step=resume.optimizer_steps(self) - 1,
        )
        self.ema = None
        if self.ema_model is not None:
            self.ema = instantiate(self.cfg.ema, model=self.ema_model)
            self.ema.optimization_step = self.resume_state.get("ema_steps", self.global_step)

    def set_up_evaluation(self, stack: contextlib.ExitStack) -> None:
        self.env_runner = instantiate(self.cfg.task.env_runner, output_dir=self.output_dir)
        if not isinstance(self.env_runner, BaseLowdimRunner | BaseImageRunner):
            raise ConfigError(
                f"task.env_runner is a {type(self.env_runner).__name__}; expected a "
                "BaseLowdimRunner or BaseImageRunner"
            )
        stack.enter_context(contextlib.closing(self.env_runner))
        self.topk = TopKCheckpointManager(
            save_dir=os.path.join(self.output_dir, "checkpoints"), **self.cfg.checkpoint.topk
        )

    def apply_debug_limits(self) -> None:
        """``training.debug``: two short epochs that visit everything. The schedule stays that of
        the full run."""
        self.settings = copy.deepcopy(self.cfg.training)
        if self.settings.debug:
            limits = {"num_epochs": 2, "max_train_steps": 3, "max_val_steps": 3}
            every = ("rollout_every", "checkpoint_every", "val_every", "sample_every")
            with open_dict(self.settings):
                self.settings.update(limits | dict.fromkeys(every, 1))

    def open_logs(self, stack: contextlib.ExitStack) -> None:
        """The log, the progress bar over all epochs, and what the run is going to cost."""
        self.run_logger: Any = None
        n_epochs = self.settings.num_epochs
        self.stopwatch = Stopwatch()
        self.forecast = Forecast(self.epoch, n_epochs, self.batches_per_epoch, self.is_due)
        if not self.processes.is_main:
            return
        # A checkpoint of the original does not say how long its log was: nothing is dropped (None).
        log_bytes = self.resume_state.get("log_bytes") if self.continued_from else 0
        logger_of_run = RunLogger(
            self.output_dir,
            self.cfg.logging,
            config=self.cfg,
            resume_bytes=log_bytes,
        )
        self.run_logger = stack.enter_context(logger_of_run)
        stack.enter_context(logging_redirect_tqdm())
        self.epoch_bar = stack.enter_context(self.progress_bar("Epochs", n_epochs))
        self.epoch_bar.update(min(self.epoch, n_epochs))
        logger.info(describe_run(self))
        warn_about_kills(self.cfg)

    # ---- one epoch -------------------------------------------------------------------------------

    @property
    def batches_per_epoch(self) -> int:
        return min(len(self.train_loader), self.settings.max_train_steps or len(self.train_loader))

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return dict_apply(batch, lambda x: x.to(self.device, non_blocking=True))

    def train_epoch(self) -> dict[str, Any]:
        """One pass over the training data; returns the record of the epoch, so far."""
        self.processes.start_epoch(self.epoch)
        n_batches = self.batches_per_epoch
        step_log = StepLog(self.run_logger, self.last_checkpoint, self.settings.tqdm_interval_sec)
        record: dict[str, Any] = {}
        with (
            self.stopwatch.measure("step"),
            self.progress_bar(f"Training epoch {self.epoch}", n_batches) as progress,
        ):
            batches = self.stopwatch.waiting("data_wait", self.train_loader)
            for i, (indices, batch) in enumerate(itertools.islice(batches, n_batches)):
                batch = self.to_device(batch)
                if self.sampling_indices is None:
                    self.keep_sampling_batch(indices.tolist(), batch)
                with self.processes.sharing(n_rows=len(indices)):
                    record = {**self.train_step(batch), "global_step": self.global_step}
                record |= {"epoch": self.epoch, **self.learning_rate()}
                is_last = i == len(self.train_loader) - 1
                step_log.add(record, indices, write=self.processes.is_main and not is_last)
                if loss := step_log.flush_if_due():
                    progress.set_postfix(loss=loss, refresh=False)
                    self.forecast.after_steps(i + 1, self.stopwatch.seconds)
                progress.update()
                if not is_last:
                    self.global_step += 1
            step_log.flush()
        return record | step_log.means()

    def keep_sampling_batch(self, indices: list[int], batch: dict[str, Any] | None = None) -> None:
        """Keeps the batch that :meth:`action_error` is measured on.

        Args:
            indices: its items. batch: these, if they are at hand.
        """
        self.sampling_indices = indices
        if batch is None or self.processes.count > 1:
            dataset: Any = self.train_loader.dataset
            batch = self.to_device(dataset.__getitems__(indices).batch)
        self.sampling_batch = batch

    def progress_bar(self, description: str, total: int) -> ProgressBar:
        return ProgressBar(
            desc=description,
            total=total,
            leave=False,
            mininterval=self.settings.tqdm_interval_sec,
            disable=None if self.processes.is_main else True,
        )

    def learning_rate(self) -> dict[str, float]:
        return {"lr": float(self.lr_scheduler.get_last_lr()[0])}

    def last_checkpoint(self) -> str | None:
        path = self.get_checkpoint_path()
        return str(path) if path.is_file() else None

    def evaluate_epoch(self) -> dict[str, Any]:
        """Rollouts, validation and the action error, as far as they are due after this epoch."""
        log: dict[str, Any] = {}
        policy: Any = self.get_eval_policy()
        policy.eval()
        if self.is_due("rollout_every"):
            with self.stopwatch.measure("rollout"):
                log |= self.env_runner.run(policy)
        with torch.no_grad():
            if self.is_due("val_every"):
                with self.stopwatch.measure("validation"):
                    log |= self.validate()
            if self.is_due("sample_every"):
                with self.stopwatch.measure("sampling"):
                    error = self.action_error(policy, self.sampling_batch or {})
                    log["train_action_mse_error"] = error.item()
        policy.train()
        return log

    def validate(self) -> dict[str, Any]:
        """Mean loss over the validation batches; nothing when there are none."""
        n_batches = min(len(self.val_loader), self.settings.max_val_steps or len(self.val_loader))
        losses: list[torch.Tensor] = []
        with self.progress_bar(f"Validation epoch {self.epoch}", n_batches) as progress:
            for _, batch in itertools.islice(self.val_loader, n_batches):
                losses.append(self.validation_loss(self.to_device(batch)))
                progress.update()
        return {"val_loss": float(torch.stack(losses).mean())} if losses else {}

    def report_progress(self) -> None:
        """Where the time of the epoch went, and when the run will end."""
        lap = self.stopwatch.lap()
        where = {"global_step": self.global_step, "epoch": self.epoch}
        self.run_logger.log_times(where | lap, step=self.global_step)
        end = self.forecast.after_epoch(lap)
        self.epoch_bar.set_postfix_str(f"ends {end}")
        self.epoch_bar.update()
        if self.epoch_bar.disable:  # no terminal, but perhaps somebody who reads the output
            self.forecast.say_at_times(f"epoch {self.epoch} is done, step {self.global_step}", end)

    # ---- checkpoints -----------------------------------------------------------------------------

    def write_checkpoints(self, step_log: dict[str, Any]) -> None:
        """Writes the last checkpoint and, if this epoch is among the best, keeps it under its
        top-k name."""
        with self.stopwatch.measure("checkpoint"):
            self._write_checkpoints(step_log)

    def _write_checkpoints(self, step_log: dict[str, Any]) -> None:
        self.wait_for_checkpoints()
        metrics = {key.replace("/", "_"): value for key, value in step_log.items()}
        topk_path = self.topk.propose(metrics) if self.is_due("checkpoint_every") else None
        self.resume_state = resume.capture(self)
        if self.cfg.checkpoint.save_last_snapshot:
            # First: a kill before the checkpoint is complete repeats the epoch, and this with it.
            self.save_snapshot()
        if self.cfg.checkpoint.save_last_ckpt:
            latest = self.save_checkpoint()
            if topk_path:
                self._in_background(lambda: link_or_copy(latest, topk_path))
        elif topk_path:
            self.save_checkpoint(path=topk_path)
        if topk_path:
            self._in_background(lambda: self.topk.commit(topk_path))
        del self.resume_state["gradients"]  # as large as the weights


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
