"""One command as a child: what it gets, how it is interrupted, how it ends with its parent."""

import ctypes
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from child_processes import is_alive, wait_until_gone

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.multirun.run_command import (
    CONSOLE_HEADER,
    console,
    data_folder,
    describe_exit,
    kill,
    link_data,
    start_command,
    wait_for_end,
    worker_fn,
)

# Says when it can be interrupted, counts SIGINT, ends a moment later with the code given.
COUNTING = """
import pathlib, signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
pathlib.Path("ready").touch()
while not seen:
    time.sleep(0.01)
time.sleep(0.5)
pathlib.Path("seen").write_text(str(len(seen)))
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(code, *arguments) -> list[str]:
    return ["python", "-c", code, *arguments]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupt_when(path, n=1) -> threading.Thread:
    """Sends this process n SIGINTs, one after the other, when the file is there."""

    def run():
        wait_until(path.exists)
        for _ in range(n):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_success_returns_zero(here):
    assert worker_fn(python("pass")) == 0


def test_failure_raises_and_says_what(here):
    with pytest.raises(RuntimeError, match=r"^Failed execution\..*exit code 3: python -c"):
        worker_fn(python("raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match=r"^Failed execution\..*killed by SIGKILL"):
        worker_fn(python("import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(RuntimeError, match=r"^Failed execution\..*exit code 127"):
        worker_fn(["no-such-command"])


def test_python_is_this_interpreter_and_the_environment_is_ours(here, monkeypatch):
    monkeypatch.setenv("MARK", "x")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    code = "import json, os, sys; json.dump([sys.prefix, dict(os.environ)], open('out', 'w'))"
    assert worker_fn(python(code), unbuffer_python=True) == 0
    prefix, environment = json.loads((here / "out").read_text())
    assert prefix == sys.prefix
    assert (environment["MARK"], environment["PYTHONUNBUFFERED"]) == ("x", "TRUE")
    assert "PYTHONUNBUFFERED" not in os.environ
    assert worker_fn(python(code)) == 0
    assert "PYTHONUNBUFFERED" not in json.loads((here / "out").read_text())[1]


def test_a_shell_can_read_the_command(here):
    assert worker_fn(["echo", "$((1 + 2))", ">", "out"], use_shell=True) == 0
    assert (here / "out").read_text() == "3\n"


def test_sigint_is_unblocked_and_not_ignored_in_the_command(here):
    code = "import signal; s = signal; print(s.pthread_sigmask(s.SIG_BLOCK, []), s.getsignal(2))"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with open("out", "w") as output:
            start_command(python(code), output=output).wait(60)
    finally:
        signal.signal(signal.SIGINT, earlier)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    assert (here / "out").read_text() == "set() <built-in function default_int_handler>\n"


@pytest.mark.parametrize("code", [0, 130])
def test_several_interrupts_reach_the_command_as_one(here, code):
    handler = signal.getsignal(signal.SIGINT)
    thread = interrupt_when(here / "ready", n=3)
    assert worker_fn(python(COUNTING, str(code))) == code
    thread.join()
    assert (here / "seen").read_text() == "1"
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_reaches_what_a_shell_runs(here):
    (here / "command.py").write_text(COUNTING)
    thread = interrupt_when(here / "ready")
    line = ["trap true INT; python", "command.py", "0; touch", "after"]
    assert worker_fn(line, use_shell=True) == 0
    thread.join()
    assert (here / "seen").read_text() == "1"
    assert (here / "after").exists()


def test_a_command_that_does_not_handle_the_interrupt_is_a_success_too(here):
    code = "import pathlib, time; pathlib.Path('ready').touch(); time.sleep(600)"
    thread = interrupt_when(here / "ready")
    assert worker_fn(python(code)) == -signal.SIGINT
    thread.join()


def test_the_code_of_an_interrupt_without_one_is_a_failure(here):
    with pytest.raises(RuntimeError, match="exit code 130"):
        worker_fn(python("raise SystemExit(130)"))


def test_keyboard_interrupt_in_a_thread_is_forwarded(here):
    """A worker whose tasks are not run by the main thread gets the exception, not the signal."""
    results = []
    thread = threading.Thread(target=lambda: results.append(worker_fn(python(COUNTING, "0"))))
    thread.start()
    wait_until((here / "ready").exists)
    for _ in range(2):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
        )
        time.sleep(0.1)
    thread.join(60)
    assert results == [0]
    assert (here / "seen").read_text() == "1"


def test_another_exception_ends_the_command(here):
    def fail(*_):
        raise OSError("disk")

    process = start_command(python("import time; time.sleep(600)"))
    earlier = signal.signal(signal.SIGUSR1, fail)
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(OSError, match="disk"):
            wait_for_end(process)
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert process.returncode == -signal.SIGTERM


def test_what_a_killed_command_started_ends_with_it(here):
    code = """
import os, pathlib, subprocess, signal
child = subprocess.Popen(["sleep", "600"])
pathlib.Path("child").write_text(str(child.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert wait_for_end(start_command(python(code))) == (-signal.SIGKILL, False)
    number = int((here / "child").read_text())
    wait_until_gone(number)


def test_a_command_does_not_outlive_its_parent(here):
    code = """
from diffusion_policy.multirun.run_command import worker_fn
worker_fn(["python", "-c",
    "import os, pathlib, time; pathlib.Path('p').write_text(str(os.getpid())); time.sleep(600)"])
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: (here / "p").exists() and (here / "p").read_text())
    number = int((here / "p").read_text())
    assert is_alive(number)
    parent.kill()
    parent.wait()
    wait_until_gone(number)


def test_kill_ends_the_whole_session(here):
    process = start_command(["sh", "-c", "sleep 600 & echo $! > child; wait"])
    wait_until(lambda: (here / "child").exists() and (here / "child").read_text().strip())
    number = int((here / "child").read_text())
    kill(process)
    assert process.returncode == -signal.SIGKILL
    wait_until_gone(number)
    kill(process)  # harmless


def test_data_becomes_a_link_and_an_existing_one_is_fine(here):
    source = here / "elsewhere"
    source.mkdir()
    for _ in range(2):
        assert worker_fn(python("open('data/x', 'a').write('.')"), data_src=str(source)) == 0
    assert (here / "data").is_symlink()
    assert (source / "x").read_text() == ".."


def test_jobs_with_the_same_copy_of_the_code_can_have_different_data(here):
    (here / "module.py").write_text("name = 'mine'\n")
    for name in ("one", "two", "one"):
        (here / name).mkdir(exist_ok=True)
        code = "import module; open('data/x', 'a').write(module.name)"
        assert worker_fn(python(code), data_src=str(here / name)) == 0
    assert (here / "data").resolve() == here / "one"
    assert (here / "one" / "x").read_text() == "minemine"
    assert (here / "two" / "x").read_text() == "mine"


def test_other_data_is_not_taken_for_the_named_one(here):
    for name in ("one", "two", "cwd/data"):
        (here / name).mkdir(parents=True)
    link_data(here / "one")
    with pytest.raises(ConfigError, match="--data_src"):
        link_data(here / "two")
    with pytest.raises(ConfigError, match=r"cwd/data"):
        link_data(here / "one", here / "cwd")
    link_data(here / "cwd" / "data", here / "cwd")  # it is that folder already


def test_a_missing_data_folder_is_one_sentence(here):
    with pytest.raises(ConfigError, match="--data_src nowhere: there is no such folder"):
        data_folder("nowhere")
    assert data_folder(".") == here


def test_the_console_keeps_what_earlier_attempts_said(here):
    for attempt in (1, 2):
        with console(here / "console.log", attempt, ["echo", "a b"]) as output:
            start_command(["echo", f"line {attempt}"], output=output).wait(60)
    lines = pathlib.Path("console.log").read_text().splitlines()
    assert [lines[1], lines[3]] == ["line 1", "line 2"]
    matches = [re.match(CONSOLE_HEADER, line) for line in (lines[0], lines[2])]
    assert [match["attempt"] for match in matches if match] == ["1", "2"]
    assert lines[0].endswith(": echo 'a b'")


def test_exits_in_words():
    assert [describe_exit(code) for code in (0, 3, -9, -64)] == [
        *("exit code 0", "exit code 3", "killed by SIGKILL"),
        "killed by SIGRTMAX",
    ]
