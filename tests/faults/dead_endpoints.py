"""Endpoints that are dead: nobody listens, somebody does and never answers, or answers a byte at a time for ever; and
a proxy that turns into one when told."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

DRIP_SECONDS = 0.05
"""Between two bytes: far below the read timeout of any test."""


@contextmanager
def closed_port() -> Iterator[str]:
    """A port that is ours, at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def silent_port() -> Iterator[str]:
    """A listening socket: the kernel takes connections, and nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Pace:
    """So many bytes per second, over all who ask."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._due = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, count: int) -> None:
        with self._lock:
            self._due = max(self._due, time.monotonic() - 1) + count / self._rate
            left = self._due - time.monotonic()
        time.sleep(max(left, 0))


class DrippingServer(ThreadingHTTPServer):
    """Takes every request, and answers it a byte at a time, from its head or its body on, until `hang_up()`.

    Those for `prompt` paths (method and path begin so) are answered at once, with the status and body given there.
    Bodies of requests are taken at the `pace`, if there is one.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, part: str = "head") -> None:
        super().__init__(("127.0.0.1", 0), _Dripping)
        self.part = part
        self.pace: Pace | None = None
        self.prompt: dict[str, tuple[int, str]] = {}
        self.requests: list[str] = []
        self.complete: list[str] = []
        """Those whose bodies have come to their end."""
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def hang_up(self) -> None:
        self.ended.set()


class _Dripping(BaseHTTPRequestHandler):
    server: DrippingServer
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        request = f"{self.command} {self.path}"
        self.server.requests.append(request)
        with suppress(OSError):  # the client has gone
            left = int(self.headers.get("Content-Length") or 0)
            while left and (piece := self.rfile.read(min(left, 65_536))):
                left -= len(piece)
                if self.server.pace:
                    self.server.pace.wait(len(piece))
            if not left:
                self.server.complete.append(request)
            prompt = next((known for start, known in self.server.prompt.items() if request.startswith(start)), None)
            status, body = prompt or (200, " " * 1_000)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"e"')
            self.send_header("Last-Modified", "Fri, 20 Nov 2026 09:37:33 GMT")
            self.send_header("Connection", "close")
            if prompt or (self.server.part == "body" and self.command != "HEAD"):
                self.end_headers()
            else:
                self.flush_headers()
                self.wfile.write(b"X-Drip: ")
            if prompt:
                self.wfile.write(body.encode())
            while not prompt and not self.server.ended.wait(DRIP_SECONDS):
                self.wfile.write(b" ")
            if not prompt:  # a reset, which no client takes for the end of an answer
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@contextmanager
def dripping_server(part: str = "head") -> Iterator[DrippingServer]:
    with DrippingServer(part) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.hang_up()
            server.shutdown()
            thread.join()


@contextmanager
def dripping_head() -> Iterator[str]:
    with dripping_server("head") as server:
        yield server.url


@contextmanager
def dripping_body() -> Iterator[str]:
    with dripping_server("body") as server:
        yield server.url


class Proxy:
    """Passes TCP connections on to `endpoint`: all of it, until it is told otherwise."""

    def __init__(self, endpoint: str) -> None:
        self.target = endpoint
        self._silent = threading.Event()
        self._dripping = threading.Event()
        self._drips_from: bytes | None = None
        self._pace: Pace | None = None
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def silence(self) -> None:
        """From now on it takes bytes and passes none on."""
        self._silent.set()

    def drip(self) -> None:
        """From now on answers pass a byte at a time."""
        self._dripping.set()

    def drip_from(self, request: bytes) -> None:
        """The same, from the first request on that holds these bytes."""
        self._drips_from = request

    def throttle(self, bytes_per_second: float) -> None:
        """Of all connections together."""
        self._pace = Pace(bytes_per_second)

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._accepting.join(timeout=30)  # it may just be opening a connection
        for end in (self._server, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self._open.append(near)
                far = socket.create_connection((urlsplit(self.target).hostname, urlsplit(self.target).port))
                self._open.append(far)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink, sink is near), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if not answers and self._drips_from is not None and self._drips_from in data:
                    self.drip()
                if self._pace:
                    self._pace.wait(len(data))
                if answers and self._dripping.is_set():
                    for at in range(len(data)):
                        sink.sendall(data[at : at + 1])
                        time.sleep(DRIP_SECONDS)
                elif not self._silent.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def proxied(endpoint: str) -> Iterator[Proxy]:
    proxy = Proxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()
