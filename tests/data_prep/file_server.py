"""A local http server of files that can refuse ranges, drop connections, redirect, and answer with errors."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """files: by path. ranges: whether Range is understood. drop_after: bytes of a body until the connection ends, or is
    silent with `stalls`.

    statuses: answered once each, before the files. redirects: from path to path or address. requests: (path, Range) of each.
    authorizations: of each.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.statuses: list[int] = []
        self.ranges, self.etags, self.drop_after = True, True, 0
        self.stalls, self._closed = False, threading.Event()
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                server._answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"

    def address(self, path: str) -> str:
        return f"http://{self.host}/{path}"

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.lstrip("/").partition("?")[0]
        asked = request.headers.get("Range", "")
        self.requests.append((path, asked))
        self.authorizations.append(request.headers.get("Authorization"))
        with contextlib.suppress(ConnectionError):
            if self.statuses:
                request.send_error(self.statuses.pop(0))
            elif path in self.redirects:
                request.send_response(302)
                request.send_header("Location", self.redirects[path])
                request.end_headers()
            elif path in self.files:
                self._send(request, self.files[path], asked)
            else:
                request.send_error(404)

    def _send(self, request: BaseHTTPRequestHandler, data: bytes, asked: str) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        unchanged = request.headers.get("If-Range", etag) == etag
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges and unchanged else 0
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.etags:
            request.send_header("ETag", etag)
        if self.ranges:
            request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        body = data[start:]
        request.wfile.write(body[: self.drop_after] if self.drop_after else body)
        if self.stalls:
            request.wfile.flush()
            self._closed.wait(60)


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    try:
        yield server
    finally:
        server.close()
