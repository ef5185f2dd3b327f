"""The served report: follows the runs, answers on loopback only, ends with Ctrl-C."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.parse

import pytest
import requests

from diffusion_policy.report.build import Report
from diffusion_policy.report.serve import Site


def append(folder, epoch, **values):
    row = {"train_loss": 0.5, "epoch": epoch, "global_step": 5 * epoch + 4} | values
    with (folder / "logs.json.txt").open("a") as file:
        file.write(json.dumps(row) + "\n")


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def versions(address) -> dict[str, str]:
    return dict(requests.get(address + "parts", timeout=30).json()["parts"])


def test_a_growing_log_changes_those_parts_that_show_it(serve, make_sweep):
    sweep = make_sweep("sweep", n_videos=1)
    with serve([sweep]) as (process, address):
        page = requests.get(address, timeout=30)
        assert "<h1>sweep</h1>" in page.text
        before = versions(address)
        assert all(f'data-version="{version}"' in page.text for version in before.values())
        append(sweep / "train_0", 7, **{"test/mean_score": 0.99})
        wait_for(lambda: versions(address) != before)
        after = versions(address)
        changed = {name for name in after if after[name] != before[name]}
        assert changed == {"tiles", "scores", "curves", "runs"}
        part = requests.get(address + "part/runs", timeout=30)
        assert part.headers["ETag"] == f'"{after["runs"]}"'
        assert "8 of 4" in part.text
        assert process.poll() is None


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_without_a_word(serve, make_sweep, stop):
    with serve([make_sweep("sweep", evaluate=False)]) as (process, address):
        requests.get(address, timeout=30)
        process.send_signal(stop)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")
        with pytest.raises(requests.ConnectionError):
            requests.get(address, timeout=30)


def test_only_loopback_by_its_own_name_is_answered(serve, make_run):
    with serve([make_run(evaluate=False)]) as (_, address):
        port = urllib.parse.urlsplit(address).port
        assert address == f"http://127.0.0.1:{port}/"
        for path in ("", "parts", "part/tiles"):
            for host in (
                "evil.example",
                f"evil.example:{port}",
                "127.0.0.1",
                f"localhost:{port}.x",
            ):
                answer = requests.get(address + path, headers={"Host": host}, timeout=30)
                assert answer.status_code == 403
                assert answer.text == f"This page is at http://127.0.0.1:{port}/ only."
        own = requests.get(address, headers={"Host": f"LOCALHOST:{port}"}, timeout=30)
        assert own.status_code == 200
        with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
            raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert raw.makefile("rb").readline().startswith(b"HTTP/1.0 403")


def test_only_the_page_and_its_parts_are_there(serve, make_run):
    with serve([make_run(evaluate=False)]) as (_, address):
        for path in ("logs.json.txt", "part/", "part/nothing", "part/../logs.json.txt", "parts/x"):
            assert requests.get(address + path, timeout=30).status_code == 404
        assert requests.post(address, timeout=30).status_code == 501
        page = requests.get(address, timeout=30)
        assert "connect-src 'self'" in page.text
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in page.headers


def test_a_port_that_is_taken_is_one_sentence(make_run):
    run = make_run(evaluate=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "diffusion_policy.report", str(run), "--watch"]
        done = subprocess.run(
            [*command, "--port", port], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: Cannot serve on port {port} of 127.0.0.1: Address already in use; choose another "
        "--port, or leave it out for a free one.\n"
    )


def test_with_an_output_the_file_is_kept_up_to_date_too(make_run, tmp_path):
    run = make_run(evaluate=False)
    output = tmp_path / "r.html"
    site = Site(Report([run]), output)
    assert "4 of 4" not in output.read_text()
    assert "connect-src" not in output.read_text()
    first = output.stat().st_mtime_ns
    site.update()
    assert output.stat().st_mtime_ns == first
    append(run, 6)
    site.update()
    assert "<b>7</b>" in output.read_text()


def test_a_run_that_has_not_begun_is_waited_for(make_run, tmp_path):
    run = make_run(evaluate=False)
    os.rename(run / "logs.json.txt", tmp_path / "log")
    site = Site(Report([run]))
    assert list(site.page.parts) == ["waiting"]
    assert site.page.title == "demo run"
    os.rename(tmp_path / "log", run / "logs.json.txt")
    site.update()
    assert "curves" in site.page.parts


def test_damage_leaves_the_page_as_it_was_and_is_told(make_run):
    run = make_run(evaluate=False)
    site = Site(Report([run]))
    page = site.page
    (run / "run_info.json").write_text("oops")
    site.update()
    assert site.page is page
    assert "run_info.json is not a JSON object" in site.problem
    (run / "run_info.json").write_text("{}")
    site.update()
    assert site.problem == ""


def test_an_odd_line_leaves_the_page_up_to_date_and_is_told(make_run, caplog):
    run = make_run(evaluate=False)
    site = Site(Report([run]))
    with (run / "logs.json.txt").open("a") as file:
        file.write("oops\n")
    append(run, 6)
    site.update()
    assert site.problem == ""
    assert "<b>7</b>" in site.page.parts["tiles"]
    assert "Line 21 of" in site.page.parts["notes"]
    assert "Line 21 of" in caplog.text


def test_runs_that_have_not_changed_are_not_read_again(make_sweep, monkeypatch):
    sweep = make_sweep("sweep", evaluate=False)
    loaded = []
    from diffusion_policy.report import build

    load_run = build.load_run
    monkeypatch.setattr(build, "load_run", lambda *a: loaded.append(a[0].name) or load_run(*a))
    site = Site(Report([sweep]))
    append(sweep / "train_1", 6)
    site.update()
    assert loaded == ["train_0", "train_1", "train_1"]


def test_a_browser_that_goes_away_is_no_news(serve, make_run):
    with serve([make_run(evaluate=False)]) as (process, address):
        port = urllib.parse.urlsplit(address).port
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raw.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        assert requests.get(address, timeout=30).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")


def test_a_run_that_becomes_something_else_is_served_on(make_run):
    run = make_run(evaluate=False)
    site = Site(Report([run]))
    page, log = site.page, (run / "logs.json.txt").read_bytes()
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: None):
        os.rename(run / "logs.json.txt", run / "log")
        make(run / "logs.json.txt")
        site.update()
        if (run / "logs.json.txt").is_dir():
            os.rmdir(run / "logs.json.txt")
        (run / "logs.json.txt").unlink(missing_ok=True)
        (run / "logs.json.txt").write_bytes(log)
        site.update()
        assert site.problem == ""
        assert site.page.versions == page.versions
