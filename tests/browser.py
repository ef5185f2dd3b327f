"""Chromium for tests of pages, driven through WebDriver."""

import contextlib
import shutil
import socket
import subprocess
import time

import pytest
import requests

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER),
    reason="needs a browser: apt-get install chromium chromium-driver",
)

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Browser:
    """The few WebDriver commands the tests need."""

    def __init__(self, server: str, user_data_dir: str):
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={user_data_dir}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self.session = server + "/session"
        session = self.command("", capabilities={"alwaysMatch": wanted})
        self.session += f"/{session['sessionId']}"

    def command(self, path: str, **parameters):
        answer = requests.post(self.session + path, json=parameters, timeout=60).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def run(self, script: str):
        return self.command("/execute/sync", script=script, args=[])

    def wait_for(self, condition: str):
        deadline = time.monotonic() + 30
        while not self.run(f"return {condition}"):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.05)

    def devtools(self, command: str, **parameters):
        return self.command("/goog/cdp/execute", cmd=command, params=parameters)

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.command("/se/log", type="browser")]

    def quit(self):
        requests.delete(self.session, timeout=60)


@contextlib.contextmanager
def running_browser(user_data_dir):
    """A browser with a profile of its own."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    driver = subprocess.Popen(
        [CHROMEDRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        server = f"http://127.0.0.1:{port}"
        for _ in range(300):
            with contextlib.suppress(requests.ConnectionError):
                requests.get(server + "/status", timeout=5)
                break
            time.sleep(0.1)
        browser = Browser(server, str(user_data_dir))
        yield browser
        browser.quit()
    finally:
        driver.terminate()
        driver.wait(30)
