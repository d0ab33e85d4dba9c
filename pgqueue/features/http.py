"""`ctx.http`: an HTTP client of the attempt's own.

Guarantees: no cookie and no connection of one attempt is another's; the client is closed when the task's function has
ended. In a local run `file://` leads to files, so that a job that is given a URL can be tried without a server.
Never: follows a `file://` URL anywhere else: who may enqueue a job may not read a worker's files by that.
"""

from __future__ import annotations

import ssl
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

from pgqueue.errors import MissingExtra
from pgqueue.extension import Here

if TYPE_CHECKING:  # an extra
    import httpx2

HEADERS = {"user-agent": "pgqueue"}


class BaseHttp:
    """What both colours of context have of it."""

    _here: Here

    def _check_time(self) -> None:
        """End the attempt here if the next one may have begun."""
        raise NotImplementedError

    def _clients(self) -> Clients:
        self._check_time()
        keeper = self._here.keeper
        if not isinstance(keeper.lent, Clients):
            keeper.lent = Clients(reach_files=self._here.mode == "local")
        return keeper.lent


class Http(BaseHttp):
    """Of a plain function's context."""

    @property
    def http(self) -> httpx2.Client:
        """A client for HTTP, with the time-outs of httpx2 (5 s each); follows no redirects.

        raises  MissingExtra without the extra `http`; Cancel after the attempt's time-out
        """
        return self._clients().plain()


class AsyncHttp(BaseHttp):
    """Of a coroutine's context."""

    @property
    def http(self) -> httpx2.AsyncClient:
        """A client for HTTP; see `Http.http`."""
        return self._clients().of_loop()


class Clients:
    """The clients of one attempt, of which it uses one."""

    def __init__(self, *, reach_files: bool) -> None:
        self._reach_files = reach_files
        self._plain: httpx2.Client | None = None
        self._of_loop: httpx2.AsyncClient | None = None

    def plain(self) -> httpx2.Client:
        """For a plain function."""
        if self._plain is None:
            self._plain = self._module().Client(verify=_trust(), headers=HEADERS)
        return self._plain

    def of_loop(self) -> httpx2.AsyncClient:
        """For a coroutine."""
        if self._of_loop is None:
            self._of_loop = self._module().AsyncClient(verify=_trust(), headers=HEADERS)
        return self._of_loop

    def close(self) -> None:
        """The plain function has ended."""
        if self._plain is not None:
            self._plain.close()

    async def aclose(self) -> None:
        """The coroutine has ended."""
        if self._of_loop is not None:
            await self._of_loop.aclose()

    def _module(self) -> ModuleType:
        """That which has the clients."""
        found = _httpx2()
        if self._reach_files:
            from pgqueue.features import files as found  # needs the extra
        return found


def _httpx2() -> ModuleType:
    try:
        import httpx2
    except ModuleNotFoundError as error:
        raise MissingExtra("ctx.http needs the extra http: pip install 'pgqueue-jobs[http]'") from error
    return httpx2


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """Takes 20 ms to make."""
    made: ssl.SSLContext = _httpx2().create_ssl_context()
    return made
