"""Processes that a test has started, and theirs."""

import time

import psutil

DEADLINE_S = 60


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, f"one of {pids} lives on"
        time.sleep(0.02)


def children(process, *words: str) -> list[psutil.Process]:
    """Descendants of a process that have these words in their command lines."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            command = child.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if all(any(word in part for part in command) for word in words):
            found.append(child)
    return found
