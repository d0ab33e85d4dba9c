"""`file://` for an HTTP client: GET, HEAD, PUT and DELETE of files of this machine.

Guarantees: answers as a plain web server would: 404 for what isn't there, 403 for what may not be read or written, one
range of bytes if asked for (206, 416); a PUT replaces the file when all of it has come, or not at all.
Never: makes or lists directories; follows a redirect that leads here from elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import httpx2

from pgqueue.features.durable import replacing

CHUNK = 64 * 1024
_MEANT = "pgqueue.file"  # what a request has that was made for a file
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class FileTransport(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """For both colours of client; files don't block for long."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Do what the request asks for."""
        with _Answering(request) as answer:
            if request.method == "PUT":
                assert isinstance(request.stream, httpx2.SyncByteStream)
                with _replacing(answer.path) as file:
                    for chunk in answer.sent(request.stream):
                        file.write(chunk)
            else:
                answer.without_body()
        return answer.response

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Do what the request asks for."""
        with _Answering(request) as answer:
            if request.method == "PUT":
                assert isinstance(request.stream, httpx2.AsyncByteStream)
                with _replacing(answer.path) as file:
                    async for chunk in answer.asent(request.stream):
                        file.write(chunk)
            else:
                answer.without_body()
        return answer.response


class _WithHost:
    """A URL without a host counts as relative for httpx2, and would lose its scheme."""

    def build_request(self, method: str, url: httpx2.URL | str, **extra: Any) -> httpx2.Request:
        url = httpx2.URL(url)
        if url.scheme == "file" and not url.host:
            url = url.copy_with(host="localhost")
        made: httpx2.Request = super().build_request(method, url, **extra)  # type: ignore[misc]
        if made.url.scheme == "file":
            made.extensions[_MEANT] = True
        return made


class Client(_WithHost, httpx2.Client):
    """A client that reaches files."""

    def __init__(self, **options: Any) -> None:
        super().__init__(mounts={"file://": FileTransport()}, **options)


class AsyncClient(_WithHost, httpx2.AsyncClient):
    """A client that reaches files."""

    def __init__(self, **options: Any) -> None:
        super().__init__(mounts={"file://": FileTransport()}, **options)


class _Answering:
    """The answer to one request; an error of the system is an answer too."""

    def __init__(self, request: httpx2.Request) -> None:
        self._request = request
        self._senders: OSError | None = None
        if _MEANT not in request.extensions:
            raise httpx2.UnsupportedProtocol(f"{request.url}: no redirect leads to a file", request=request)
        if request.url.host not in ("", "localhost"):
            raise httpx2.UnsupportedProtocol(f"{request.url}: a file URL names no host: file:///path", request=request)
        self.path = _path(request.url)
        if "\0" in str(self.path):
            raise httpx2.UnsupportedProtocol(f"{request.url}: no file's name has a NUL", request=request)
        self.response = httpx2.Response(204, request=request)

    def __enter__(self) -> _Answering:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is self._senders:
            return False
        match error:
            case FileNotFoundError() | NotADirectoryError():
                self._refuse(404, error)
            case PermissionError() | IsADirectoryError():
                self._refuse(403, error)
            case OSError():
                raise httpx2.TransportError(str(error), request=self._request) from error
        return isinstance(error, OSError)

    def sent(self, stream: httpx2.SyncByteStream) -> Iterator[bytes]:
        """The request's body. An error in it is its sender's, and no answer."""
        try:
            yield from stream
        except OSError as error:
            self._senders = error
            raise

    async def asent(self, stream: httpx2.AsyncByteStream) -> AsyncIterator[bytes]:
        """The request's body; see `sent`."""
        try:
            async for chunk in stream:
                yield chunk
        except OSError as error:
            self._senders = error
            raise

    def without_body(self) -> None:
        """Do what a request without a body asks for."""
        match self._request.method:
            case "GET":
                self._get(self.path.open("rb"))
            case "HEAD":
                with self.path.open("rb") as file:
                    self._found(200, os.fstat(file.fileno()).st_size)
            case "DELETE":
                self.path.unlink()
            case _:
                self.response = httpx2.Response(405, headers={"allow": "GET, HEAD, PUT, DELETE"})

    def _get(self, file: IO[bytes]) -> None:
        size = os.fstat(file.fileno()).st_size
        wanted = _wanted(self._request.headers.get("range", ""), size)
        if wanted is None:
            self._found(200, size, _Body(file, 0, size))
        elif not wanted:
            file.close()
            self.response = httpx2.Response(416, headers={"content-range": f"bytes */{size}"})
        else:
            self._found(206, len(wanted), _Body(file, wanted.start, len(wanted)))
            self.response.headers["content-range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"

    def _found(self, status: int, length: int, body: _Body | None = None) -> None:
        headers = {"content-length": str(length), "accept-ranges": "bytes"}
        self.response = httpx2.Response(status, headers=headers, stream=body)

    def _refuse(self, status: int, error: OSError) -> None:
        self.response = httpx2.Response(status, text=f"{self.path}: {error.strerror}")


def _path(url: httpx2.URL) -> Path:
    """That of the file, whose name may have any bytes: `url.path` has only text."""
    return Path(os.fsdecode(unquote_to_bytes(url.raw_path.partition(b"?")[0])))


def _wanted(header: str, size: int) -> range | None:
    """The bytes of a Range header; empty if there are none such, None if it asks for nothing that is understood."""
    found = _RANGE.fullmatch(header)
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    return range(int(first), min(size, int(last) + 1) if last else size)


class _Body(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file = file
        self._left = length
        file.seek(start)

    def __iter__(self) -> Iterator[bytes]:
        while self._left:
            chunk = self._file.read(min(CHUNK, self._left))
            if not chunk:
                raise httpx2.ReadError(f"{self._file.name}: became shorter while it was read")
            self._left -= len(chunk)
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk

    def close(self) -> None:
        self._file.close()

    async def aclose(self) -> None:
        self._file.close()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of another, and has its mode; a new one is everybody's to read."""
    with replacing(path) as file:
        yield file
        try:
            mode = path.stat().st_mode & 0o777
        except OSError:
            mode = 0o644
        os.fchmod(file.fileno(), mode)
