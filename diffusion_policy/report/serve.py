"""The report as a page on this machine that follows the runs while they go on.

The browser asks which parts of the page have changed and fetches those. Only loopback is served,
and only to pages that call it by a name of loopback: a site elsewhere whose name was pointed at
this machine (DNS rebinding) reads nothing.
"""

import http.server
import json
import logging
import pathlib
import socketserver
import threading
import time
import urllib.parse
from collections.abc import Callable
from http import HTTPStatus

from diffusion_policy.common.errors import DiffusionPolicyError
from diffusion_policy.multirun.signals import stop_signals
from diffusion_policy.report.build import Report
from diffusion_policy.report.page import Page
from diffusion_policy.report.shell import write_page

HOST = "127.0.0.1"
INTERVAL_S = 1.0  # between two looks at the files
PAUSE_FACTOR = 4  # times as long as making the page takes, it is not made anew

log = logging.getLogger(__name__)


def serve(
    report: Report,
    port: int = 0,
    output: pathlib.Path | None = None,
    announce: Callable[[str], object] = log.info,
) -> None:
    """Serves a report until SIGINT or SIGTERM.

    Args:
        report: What to serve.
        port: On 127.0.0.1; 0 takes a free one.
        output: The page is also written here, whenever it has changed.
        announce: Gets one sentence with the address, once it answers.

    Raises:
        DiffusionPolicyError: If there is nothing to report, or the port is taken.
    """
    site = Site(report, output)
    with stop_signals() as stop, _open(site, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        announce(f"http://{HOST}:{server.server_port}/ follows the runs; Ctrl-C ends it")
        while not stop.count:
            stop.wait(max(INTERVAL_S, PAUSE_FACTOR * site.seconds))
            if not stop.count:
                site.update()
        server.shutdown()
        thread.join()


class Site:
    """The newest page of a report.

    Attributes:
        page: The page as it was made last.
        problem: Why it is not newer; empty if it is up to date.
        seconds: How long making it took.
    """

    def __init__(self, report: Report, output: pathlib.Path | None = None):
        self._report = report
        self._output = output
        self._fingerprint = report.fingerprint()
        self.problem = ""
        self.page = self._make()

    def update(self) -> None:
        """Makes the page anew if a file has changed. A failure leaves it as it is."""
        try:
            fingerprint = self._report.fingerprint()
            if fingerprint == self._fingerprint and not self.problem:
                return
            self._fingerprint = fingerprint
            self.page = self._make()
            self.problem = ""
        except (DiffusionPolicyError, OSError) as e:  # files may go while they are read
            if str(e) != self.problem:
                log.warning("the page is not up to date: %s", e)
            self.problem = str(e)

    def _make(self) -> Page:
        start = time.monotonic()
        page = self._report.page(None, patient=True)
        if self._output is not None:
            write_page(self._output, self._report.page(self._output, patient=True).render())
        self.seconds = time.monotonic() - start
        return page


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], site: Site):
        self.site = site
        super().__init__(address, _Handler)
        names = {HOST, "localhost"}
        self.hosts = {f"{name}:{self.server_port}" for name in names}
        if self.server_port == 80:
            self.hosts |= names

    def handle_error(self, request: object, client_address: object) -> None:
        # A browser that goes away in the middle of an answer is no news for the terminal.
        log.debug("no answer to %s", client_address, exc_info=True)

    def server_bind(self) -> None:
        # Not that of HTTPServer, which looks for the name of this machine, perhaps for seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    server_version = "report"
    sys_version = ""
    timeout = 30  # seconds, for a client that does not go on

    def do_GET(self) -> None:
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            self._send(
                f"This page is at http://{HOST}:{self.server.server_port}/ only.",
                status=HTTPStatus.FORBIDDEN,
            )
            return
        page = self.server.site.page
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        name = path.removeprefix("/part/")
        if path == "/":
            self._send(page.render_served(), "text/html")
        elif path == "/parts":
            self._send(json.dumps(self._news(page)), "application/json")
        elif name != path and name in page.parts:
            self._send(page.parts[name], "text/html", version=page.versions[name])
        else:
            self._send("There is nothing here.", status=HTTPStatus.NOT_FOUND)

    def _news(self, page: Page) -> dict[str, object]:
        """What a browser compares with what it has."""
        return {
            "title": page.title,
            "subtitle": page.subtitle,
            "parts": list(page.versions.items()),
            "problem": self.server.site.problem,
        }

    def _send(
        self,
        text: str,
        kind: str = "text/plain",
        version: str = "",
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        content = text.encode()
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }
        if version:
            headers["ETag"] = f'"{version}"'
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


def _open(site: Site, port: int) -> _Server:
    try:
        return _Server((HOST, port), site)
    except OSError as e:
        raise DiffusionPolicyError(
            f"Cannot serve on port {port} of {HOST}: {e.strerror}; choose another --port, or leave "
            "it out for a free one."
        ) from e
