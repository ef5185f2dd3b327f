"""Stands in for train.py where a test of sweeps needs no training.

    python fake_train.py <run dir> <number of epochs> <seconds per epoch> [how it behaves]

Logs one line per epoch, and continues a log that is there. SIGINT ends it, as it ends train.py.

fails: with exit code 3 and 30 lines of text, while <run dir>/broken exists.
stubborn: ignores SIGINT.
stops: itself, by SIGSTOP, while <run dir>/broken exists.
"""

import json
import os
import pathlib
import signal
import sys
import time


def main() -> None:
    run_dir, n_epochs, seconds = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    signals = run_dir / "signals"

    def on_signal(number, frame) -> None:
        with signals.open("a") as file:
            file.write(f"{number}\n")
        if "stubborn" not in sys.argv:
            time.sleep(0.3)  # writes its checkpoint
            sys.exit(130)

    signal.signal(signal.SIGINT, on_signal)
    (run_dir / "pid").write_text(str(os.getpid()))
    if "fails" in sys.argv and (run_dir / "broken").exists():
        sys.stdout.write("".join(f"line {i}\n" for i in range(30)))
        sys.exit(3)
    if "stops" in sys.argv and (run_dir / "broken").exists():
        os.kill(os.getpid(), signal.SIGSTOP)
    log = run_dir / "logs.json.txt"
    first = log.read_bytes().count(b"\n") if log.exists() else 0
    for epoch in range(first, n_epochs):
        time.sleep(seconds)
        row = {"train_loss": 1 / (1 + epoch), "global_step": epoch, "epoch": epoch}
        row["test/mean_score"] = epoch / 100
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
