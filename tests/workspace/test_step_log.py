"""Step records that are read from the device in groups."""

import pytest
import torch

from diffusion_policy.common.errors import NonFiniteLossError
from diffusion_policy.workspace.step_log import StepLog


class Lines(list):
    def log(self, record, step):
        self.append((record, step))


def record(step, loss):
    return {"train_loss": torch.tensor(loss), "extra": torch.tensor(2.0), "global_step": step} | {
        "epoch": 0
    }


def make(lines=None):
    return StepLog(Lines() if lines is None else lines, lambda: "last.ckpt", interval_sec=1000)


def test_records_are_written_in_order_and_only_when_flushed():
    lines = Lines()
    log = make(lines)
    log.add(record(0, 1.0), torch.arange(4), write=True)
    log.add(record(1, 3.0), torch.arange(4), write=False)
    assert log.flush_if_due() is None
    assert lines == []
    log.flush()
    assert lines == [({"train_loss": 1.0, "extra": 2.0, "global_step": 0, "epoch": 0}, 0)]
    assert log.means() == {"train_loss": 2.0, "extra": 2.0}


def test_nothing_after_a_loss_that_is_not_finite_is_written():
    lines = Lines()
    log = make(lines)
    log.add(record(0, 1.0), torch.arange(4), write=True)
    log.add(record(1, float("nan")), torch.tensor([7, 8]), write=True)
    log.add(record(2, 1.0), torch.arange(4), write=True)
    with pytest.raises(NonFiniteLossError, match=r"nan at step 1 .*items 7, 8\).*last\.ckpt"):
        log.flush()
    assert [step for _, step in lines] == [0]


def test_a_flush_without_records_is_nothing():
    log = make()
    log.flush()
    assert log.means() == {}
