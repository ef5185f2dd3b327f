"""A sweep on disk whose training logs a test writes as training does: line by line."""

import json
import os
import pathlib

import pytest

EPOCH_STEPS = 3


class Sweep:
    """Three steps per epoch, a rollout every second epoch: at steps 2, 8, 14 ..."""

    def __init__(self, folder: pathlib.Path, n_seeds: int = 3, val_loss: bool = True):
        self.folder = folder
        self.val_loss = val_loss
        for seed in range(n_seeds):
            (folder / f"train_{seed}").mkdir(parents=True)

    def log_path(self, seed: int) -> pathlib.Path:
        return self.folder / f"train_{seed}" / "logs.json.txt"

    def append(self, seed: int, text: str) -> None:
        with open(self.log_path(seed), "a") as file:
            file.write(text)

    def epochs(self, seed: int, *epochs: int) -> None:
        """Appends these epochs, whole."""
        self.append(seed, "".join(self.lines(seed, *epochs)))

    def rollouts(self, seed: int, *numbers: int) -> None:
        """Appends the epochs of these rollouts; number 1 is that of epoch 2."""
        self.epochs(seed, *(2 * number for number in numbers))

    def lines(self, seed: int, *epochs: int) -> list[str]:
        return [
            json.dumps(self.row(seed, epoch, i)) + "\n"
            for epoch in epochs
            for i in range(EPOCH_STEPS)
        ]

    def row(self, seed: int, epoch: int, i: int = EPOCH_STEPS - 1) -> dict:
        step = EPOCH_STEPS * epoch + i
        row = {"train_loss": 1 / (1 + step + seed), "global_step": step, "epoch": epoch, "lr": 1e-4}
        if i == EPOCH_STEPS - 1:
            if self.val_loss:
                row["val_loss"] = 1 + 0.1 * ((epoch * 7 + seed) % 5)
            if epoch % 2 == 0:
                row["test/mean_score"] = self.score(seed, epoch)
                row["train/mean_score"] = 1 - row["test/mean_score"]
        return row

    def score(self, seed: int, epoch: int) -> float:
        return ((epoch * 37 + seed * 11) % 100) / 100

    def metrics(self) -> list[dict]:
        path = self.folder / "metrics" / "logs.json.txt"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def summary(self) -> dict:
        return json.loads((self.folder / "metrics" / "metrics.json").read_text())

    def files(self) -> dict[str, bytes]:
        """What a monitor leaves, the messages of its sessions excepted."""
        names = sorted(set(os.listdir(self.folder / "metrics")) - {"metrics.log"})
        return {name: (self.folder / "metrics" / name).read_bytes() for name in names}


@pytest.fixture
def make_sweep(tmp_path):
    """make_sweep(name, n_seeds=3, val_loss=True): an empty sweep."""
    return lambda name="sweep", **kwargs: Sweep(tmp_path / name, **kwargs)


@pytest.fixture
def sweep(make_sweep) -> Sweep:
    return make_sweep()
