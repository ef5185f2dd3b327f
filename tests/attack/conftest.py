"""The attacks: what tries to break the promises of this project, again and again.

    make test      each attack has a few seconds (a sample, with a fixed seed)
    make attack    each has ATTACK_SECONDS (default 600), or ends when it has tried everything

At the end of ``make attack`` a table says what was attacked how often, and how often it held.
"""

import os
import random
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import pytest

SHORT_S = 8.0
T = TypeVar("T")


class Attack:
    """The time, the random numbers and the tally of one attack."""

    def __init__(self, record):
        self.seconds = float(os.environ.get("ATTACK_SECONDS", SHORT_S))
        self.is_long = "ATTACK_SECONDS" in os.environ
        self.rng = random.Random(20261130)
        self._record = record

    def rounds(self) -> Iterator[int]:
        """0, 1, 2, ... until the time is over; at least one."""
        end = time.monotonic() + self.seconds
        number = 0
        while number == 0 or time.monotonic() < end:
            yield number
            number += 1

    def some_of(self, cases: Iterable[T]) -> Iterator[T]:
        """The cases in random order, each once, until the time is over."""
        cases = list(cases)
        self.rng.shuffle(cases)
        yield from (case for _, case in zip(self.rounds(), cases, strict=False))

    def record(self, target: str, n: int, failures: list[str]) -> None:
        """Notes ``n`` attacks on something for the table, and fails the test if one got through.

        Args:
            target: what was attacked how, as the table is to say it.
            failures: a line for each attack that got through: how to repeat it, and what happened.
        """
        self._record("attack", (target, n, n - len(failures)))
        assert n > 0, f"{target}: nothing was attacked"
        if failures:
            shown = "\n".join(failures[:20])
            pytest.fail(f"{len(failures)} of {n} attacks got through ({target}):\n{shown}")


@pytest.fixture
def attack(record_property) -> Attack:
    return Attack(record_property)


def pytest_terminal_summary(terminalreporter) -> None:
    rows = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name == "attack"
    ]
    if not rows or "ATTACK_SECONDS" not in os.environ:
        return
    terminalreporter.section("attacks")
    terminalreporter.write_line("| what was attacked | attacks | held |\n|---|---|---|")
    for target, n, held in sorted(rows):
        terminalreporter.write_line(f"| {target} | {n:,} | {held:,} |")
