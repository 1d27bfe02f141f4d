"""An HTTP proxy on 127.0.0.1 that does to requests and answers what networks do."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    key: str
    condition: str
    """`if-match`, `if-none-match` or empty."""
    count: int
    """How often this method has come for this key and condition, this time included."""


@dataclass
class Verdict:
    """`forward` the request or not; then send its answer, or one with this `status` and code, or cut the line."""

    forward: bool = True
    cut: bool = False
    status: int | None = None
    code: str = ""


Judge = Callable[[Request], Verdict]
PASS = Verdict()
CUT = Verdict(cut=True)


@dataclass
class LossyProxy:
    """Judges every request on its way to an S3 endpoint; `judged` are those that were not simply passed."""

    endpoint: str
    judge: Judge
    url: str = ""
    judged: list[Request] = field(default_factory=list)
    counts: dict[tuple[str, str, str], int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        key = unquote(urlsplit(handler.path).path).lstrip("/").partition("/")[2]
        condition = next((name.lower() for name in handler.headers if name.lower().startswith("if-")), "")
        with self.lock:
            which = (handler.command, key, condition)
            count = self.counts[which] = self.counts.get(which, 0) + 1
            request = Request(*which, count)
            verdict = self.judge(request)
            if verdict is not PASS:
                self.judged.append(request)
        answer = self._forward(handler, body) if verdict.forward else None
        if verdict.cut:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif verdict.status is not None:
            error = f"<Error><Code>{verdict.code}</Code><Message>by the proxy</Message></Error>".encode()
            _answer(handler, verdict.status, [("Content-Type", "application/xml")], error)
        elif answer is not None:
            _answer(handler, *answer)

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        there = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=60)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() != "expect"}
            there.request(handler.command, handler.path, body, headers)
            reply = there.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            there.close()


def _answer(handler: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
    handler.send_response_only(status)
    length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
    for name, value in headers:
        if name.lower() not in ("content-length", "transfer-encoding", "connection"):
            handler.send_header(name, value)
    handler.send_header("Content-Length", length)  # that of a HEAD tells of a body which is not sent
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def lossy_proxy(endpoint: str, judge: Judge) -> Generator[LossyProxy]:
    proxy = LossyProxy(endpoint, judge)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            proxy.handle(self)
            self.wfile.flush()

        def handle_expect_100(self) -> bool:
            self.send_response_only(100)
            self.end_headers()
            return True

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that has hung up is nothing to report."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
