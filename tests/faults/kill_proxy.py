"""A proxy on the way of SlateDB's own client to S3, whose requests no wrapper of a store sees: it counts and kills."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from shardyfusion.shard_contract import DbAdapter, ShardTarget
from shardyfusion.testing import EXIT_STATUS, FactoryOver, KillPoint

_NOT_PASSED_ON = {"content-length", "transfer-encoding", "connection", "date", "server"}

_rerouted_to: str | None = None


@dataclass(frozen=True)
class ReroutedFactory(FactoryOver):
    """What `inner` does, and while this process is `rerouted`, with another endpoint for the engine's own client.

    The reruns need it too: a run id belongs to one request, and the factory is part of that.
    """

    def open(self, target: ShardTarget) -> DbAdapter:
        if _rerouted_to is None:
            return self.inner.open(target)
        options: Any = {**(target.address.options or {}), "endpoint_url": _rerouted_to}
        return self.inner.open(replace(target, address=replace(target.address, options=options)))


class RequestCount:
    """Numbers the requests of some methods, in the order in which they arrive: the k-th has the points 2k-1 and 2k."""

    def __init__(self, methods: Collection[str], stop_at: int | None = None) -> None:
        self._methods = methods
        self._stop_at = stop_at
        self._lock = threading.Lock()
        self.points: list[KillPoint] = []

    def arrived(self, method: str, name: str) -> Callable[[], None]:
        """Dies, if it is to die before this request is passed on. Else returns what may die before its answer is."""
        if method not in self._methods:
            return lambda: None
        with self._lock:
            before, after = len(self.points) + 1, len(self.points) + 2
            self.points += [
                KillPoint(number=before, when="before", action=method, name=name),
                KillPoint(number=after, when="after", action=method, name=name),
            ]
            if before == self._stop_at:
                os._exit(EXIT_STATUS)

        def answered() -> None:
            if after == self._stop_at:
                os._exit(EXIT_STATUS)

        return answered


@contextmanager
def rerouted(endpoint: str, requests: RequestCount) -> Generator[None]:
    """The requests of every engine that this process opens go through a proxy of its own, and are counted."""
    global _rerouted_to
    target = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet, or each answer waits 40 ms for an acknowledgement of its head
        server: Server

        def setup(self) -> None:
            super().setup()
            self.there = HTTPConnection(target, timeout=60)

        def finish(self) -> None:
            self.there.close()
            super().finish()

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answered = requests.arrived(self.command, unquote(urlsplit(self.path).path))
            self.there.request(self.command, self.path, body, dict(self.headers.items()))
            reply = self.there.getresponse()
            content = reply.read()
            answered()
            self.send_response_only(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in _NOT_PASSED_ON:
                    self.send_header(name, value)
            # That of a HEAD tells of a body which is not sent.
            self.send_header("Content-Length", reply.getheader("Content-Length") or str(len(content)))
            self.send_header("Date", reply.getheader("Date") or self.date_time_string())
            self.end_headers()
            self.wfile.write(content)

        do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = pass_on  # noqa: N815

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that has hung up is nothing to report."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    _rerouted_to = f"http://127.0.0.1:{server.server_port}"
    try:
        yield
    finally:
        _rerouted_to = None
        server.shutdown()
        server.server_close()
        thread.join()
