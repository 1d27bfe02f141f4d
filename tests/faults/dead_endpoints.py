"""Endpoints that are dead: nobody listens, or somebody does and never answers; and a proxy that dies when told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


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


class Proxy:
    """Passes TCP connections on to `endpoint`, until `silence()`: then it takes bytes and passes none on."""

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        self._target = (target.hostname, target.port)
        self._silent = threading.Event()
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        self._silent.set()

    def close(self) -> None:
        for end in (self._server, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if not self._silent.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def proxied(endpoint: str) -> Iterator[Proxy]:
    proxy = Proxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()
