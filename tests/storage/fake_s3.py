"""An S3 server that answers as it is told, for what no honest server does on demand."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shardyfusion.credentials import StaticCredentialProvider
from shardyfusion.storage import S3Store, StoreAddress

STATIC = StaticCredentialProvider("AKIAEXPLICIT", "top-secret", "secret-token")


class FakeS3(ThreadingHTTPServer):
    """Answers every request with the next of `replies`, or with the last one, and remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[tuple[int, str]] = [(200, "")]
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cut_short = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fails(self, status: int, code: str) -> None:
        self.replies = [(status, f"<Error><Code>{code}</Code><Message>said the store</Message></Error>")]

    def store(self, **options: Any) -> S3Store:
        options = {"endpoint_url": self.url, "max_attempts": 1} | options
        return S3Store(StoreAddress.parse("s3://bucket/snap", credential_provider=STATIC, options=options))


class _Handler(BaseHTTPRequestHandler):
    server: FakeS3
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fake = self.server
        fake.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        status, body = fake.replies.pop(0) if len(fake.replies) > 1 else fake.replies[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + 100 * fake.cut_short))
        self.send_header("Connection", "close")
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Fri, 20 Nov 2026 09:37:33 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None: ...
