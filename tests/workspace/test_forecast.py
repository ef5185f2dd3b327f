"""What a run will cost, before and while it goes on."""

import logging

import pytest

from diffusion_policy.workspace import forecast as forecasts
from diffusion_policy.workspace.forecast import Forecast


def make(first_epoch=0, n_epochs=100, n_batches=50, rollout_every=50):
    every = {"rollout_every": rollout_every, "val_every": 1, "checkpoint_every": 10}
    return Forecast(first_epoch, n_epochs, n_batches, lambda key, epoch: epoch % every[key] == 0)


def test_rare_parts_count_as_often_as_they_come():
    forecast = make()
    forecast.after_epoch({"time/step": 10.0, "time/rollout": 1000.0, "time/validation": 1.0})
    # 99 epochs of training and validation, one more rollout (epoch 50)
    assert forecast.remaining_seconds() == pytest.approx(99 * 11 + 1000)
    forecast.after_epoch({"time/step": 20.0, "time/validation": 1.0})
    assert forecast.remaining_seconds() == pytest.approx(98 * 16 + 1000)


def test_a_resumed_run_counts_from_where_it_is():
    forecast = make(first_epoch=98)
    forecast.after_epoch({"time/step": 10.0})
    assert forecast.remaining_seconds() == 10.0
    forecast.after_epoch({"time/step": 10.0})
    assert forecast.remaining_seconds() == 0.0


def test_the_first_epoch_is_summed_up(caplog):
    caplog.set_level(logging.INFO)
    forecast = make()
    end = forecast.after_epoch({"time/step": 36.0, "time/rollout": 60.0, "time/data_wait": 0.1})
    assert end in caplog.text
    assert "training steps 36 s, rollouts 60 s;" in caplog.text
    assert "(in 1 h 01 min)" in end
    forecast.after_epoch({"time/step": 36.0})
    assert caplog.text.count("first epoch") == 1


def test_speed_is_told_once_when_enough_steps_were_seen(caplog):
    caplog.set_level(logging.INFO)
    forecast = make()
    forecast.after_steps(19, {"step": 100.0})
    forecast.after_steps(20, {"step": 4.0})
    assert not caplog.text
    forecast.after_steps(40, {"step": 6.0, "data_wait": 2.0})
    forecast.after_steps(41, {"step": 6.0, "data_wait": 2.0})
    assert caplog.text.count("0.2 s per step, 25 % of it waiting for data; host memory") == 1
    assert "Training alone ends about" in caplog.text
    assert "(in 17 min)" in caplog.text  # 4960 steps


def test_without_a_terminal_a_line_a_minute(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    forecast = make()
    for seconds in (10, 59, 61, 90, 122):
        now[0] = seconds
        forecast.say_at_times("epoch 3 is done", "12:00")
    assert caplog.text.count("Epoch 3 is done; the run ends about 12:00.") == 2


def test_a_run_says_what_it_will_need(tiny_config, tmp_path, caplog):
    from runs import train

    caplog.set_level(logging.INFO)
    workspace = train(tiny_config("training.num_epochs=2"), tmp_path)
    n_parameters = sum(p.numel() for p in workspace.model.parameters())
    n_batches = len(workspace.train_loader)
    assert f"Epochs 0 to 1, {n_batches} batches of 32 each: {2 * n_batches} steps." in caplog.text
    assert f"{n_parameters / 1e6:.1f} M parameters" in caplog.text
    assert "up to 6 checkpoints" in caplog.text

    caplog.clear()
    train(tiny_config("training.num_epochs=2"), tmp_path)
    assert "All 2 epochs are done" in caplog.text


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_that_wait_at_the_end_of_an_epoch_need_room_in_a_checkpoint(
    tiny_config, tmp_path, caplog, monkeypatch, accumulate
):
    from runs import train

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(forecasts, "_size", lambda n_bytes: f"{n_bytes} bytes")
    options = [f"training.gradient_accumulate_every={accumulate}", "training.num_epochs=1"]
    workspace = train(tiny_config(*options), tmp_path)
    weights = 4 * sum(p.numel() for p in workspace.model.parameters() if p.requires_grad)
    frozen = 4 * sum(p.numel() for p in workspace.model.parameters()) - weights
    checkpoint = (4 if accumulate == 1 else 5) * weights + 2 * frozen
    assert f"about {5 * weights + 2 * frozen} bytes of memory" in caplog.text
    assert f"{checkpoint} bytes of disk for each" in caplog.text
