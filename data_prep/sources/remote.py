"""Connections to remote files: one request from a byte to the end of the file, over http or a file system of fsspec."""

import base64
import contextlib
import http.client
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from udkd.data_prep.sources.address import HTTP, Address, require_file_system, unreadable
from udkd.data_prep.sources.connection import Connection, Identity, PassingError
from udkd.utils.errors import DataError

TIMEOUT_S = 30.0  # without any byte
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
MAX_WAIT_S = 60.0
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)  # a retry does not help
_URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"


def connect(address: Address, start: int, known: Identity | None) -> Connection:
    """Open a remote file from byte `start`, or from 0 if the server cannot. known: of the file as it was opened before.

    Raises PassingError, and DataError with one line for a fault that will not pass; ConfigError if a package is missing.
    """
    return _HttpConnection(address, start, known) if address.scheme in HTTP else _FileConnection(address, start)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; only the same host gets the credentials again."""

    def redirect_request(self, request: Any, *arguments: Any) -> Any:
        following = super().redirect_request(request, *arguments)
        credentials = request.unredirected_hdrs.get("Authorization")
        if following is not None and credentials and _origin(following.full_url) == _origin(request.full_url):
            following.add_unredirected_header("Authorization", credentials)
        return following


def _origin(url: str) -> tuple[str, str]:
    parsed = urlsplit(url)
    return parsed.scheme, parsed.netloc


class _HttpConnection:
    def __init__(self, address: Address, start: int, known: Identity | None) -> None:
        self._address = address
        request = _request(address)
        if start:
            request.add_header("Range", f"bytes={start}-")
            if known is not None and known.tag.startswith('"'):  # a strong ETag
                request.add_header("If-Range", known.tag)
        try:
            response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _http_fault(address, error) from None
        self._response = response
        headers = response.headers
        length = headers.get("Content-Length", "")
        size: int | None = int(length) if length.isdecimal() else None
        self.position = 0
        self.ranges = headers.get("Accept-Ranges", "").lower() == "bytes"
        if response.status == 206:
            content = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
            if content is None or int(content[1]) != start:
                response.close()
                raise DataError(
                    f"{address} answers with bytes that were not asked for; expected those from {start:,}; download it first"
                )
            self.position, self.ranges = start, True
            size = None if content[2] == "*" else int(content[2])
        self.identity = Identity(size=size, tag=headers.get("ETag") or headers.get("Last-Modified") or "")

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise PassingError(_text(self._address, error)) from None
        return data

    def abort(self) -> None:
        try:
            descriptor = os.dup(self._response.fileno())
        except (OSError, ValueError, AttributeError):  # it is closed
            return
        with contextlib.suppress(OSError), socket.socket(fileno=descriptor) as connected:
            connected.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._response.close()


def _request(address: Address) -> urllib.request.Request:
    parsed = urlsplit(address.url)
    userinfo, _, host = parsed.netloc.rpartition("@")
    url = urlunsplit((parsed.scheme.lower(), host, parsed.path, parsed.query, ""))
    request = urllib.request.Request(quote(url, safe=_URL_CHARACTERS))
    request.add_header("Accept-Encoding", "identity")
    request.add_header("User-Agent", "udkd")
    if userinfo:
        user, _, password = userinfo.partition(":")
        token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _http_fault(address: Address, error: BaseException) -> Exception:
    """The error to raise for one of urllib: one that may pass, or one line."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return _status_fault(address, error)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    text = _text(address, reason)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DataError(
            f"{address}: the certificate of the server is not trusted ({text}); expected a valid one; check the address, or "
            "name your own authority's with SSL_CERT_FILE"
        )
    if isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN:
        return DataError(f"{address}: the host cannot be found ({text}); expected a name that resolves; check the address")
    if isinstance(reason, ssl.SSLError):
        return DataError(f"{address}: no secure connection ({text}); expected https; check the address")
    if isinstance(reason, OSError | http.client.HTTPException) and not isinstance(reason, http.client.InvalidURL):
        return PassingError(text)
    return DataError(f"{address} cannot be opened ({text}); expected an address of a file; check it")


def _status_fault(address: Address, error: urllib.error.HTTPError) -> Exception:
    code = error.code
    text = f"HTTP {code} {_text(address, error.reason)}".strip()
    if code in PASSING_STATUS:
        after = error.headers.get("Retry-After", "") if error.headers else ""
        return PassingError(text, min(float(after), MAX_WAIT_S) if after.isdecimal() else 0.0)
    if code in (404, 410):
        return DataError(f"{address} does not exist ({text}); expected a file; check the address")
    if code in (401, 403, 407):
        return DataError(
            f"{address} may not be read ({text}); expected access; check the address, and credentials such as user:password@"
        )
    if 300 <= code < 400:
        return DataError(f"{address} redirects to where it cannot be followed ({text}); expected a file; check the address")
    return DataError(f"{address} cannot be read ({text}); expected a file; check the address")


def _text(address: Address, error: object) -> str:
    text = " ".join(str(error).replace("\\n", " ").split())
    return address.redacted(text)[:200] or type(error).__name__


class _FileConnection:
    """A file of fsspec, read with requests of the caller's size, without a cache."""

    ranges = True

    def __init__(self, address: Address, start: int) -> None:
        require_file_system(address)
        from fsspec.core import url_to_fs

        self._address = address
        try:
            files, path = url_to_fs(address.url)
            files.invalidate_cache()  # the listing of an earlier pass
            details = files.info(path)
            if details["type"] == "directory":
                raise IsADirectoryError(path)
            self.identity = Identity(size=details["size"], tag=str(files.ukey(path)))
            self._file = files.open(path, "rb", **({"cache_type": "none"} if address.scheme != "memory" else {}))
            self._file.seek(start)
        except Exception as error:  # each file system raises its own
            final = not isinstance(error, OSError) or isinstance(error, _FINAL)
            raise unreadable(address, error) if final else PassingError(_text(address, error)) from None
        self.position = start

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._file.read(size))
        except Exception as error:
            raise PassingError(_text(self._address, error)) from None

    def abort(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()
