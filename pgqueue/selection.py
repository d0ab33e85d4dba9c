"""Jobs chosen by a filter, and the verbs on all of them.

A verb works through the jobs in pages of 1,000, newest first, each page one transaction of its own unless a `conn` is
given; so a million jobs do not hold locks for long, and stopping half-way loses nothing that was done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Protocol, TypedDict, TypeVar

from pgqueue.core.states import State, Verb
from pgqueue.errors import InvalidArguments, InvalidJob
from pgqueue.store import control
from pgqueue.store.control import Filter
from pgqueue.store.statement import Statement
from pgqueue.tasks.door import (
    check_delay,
    check_instant,
    check_name,
    check_priority,
    check_reason,
    check_tag,
    check_tenant,
    nearest,
)

T = TypeVar("T")
PAGE = 1000


class FilterOptions(TypedDict, total=False):
    """Which jobs. `since` and `until` are aware datetimes that bound created_at; all that is given must fit."""

    state: State | str | None
    kind: str | None
    queue: str | None
    tenant: str | None
    tag: str | None
    since: datetime | None
    until: datetime | None


def make_filter(options: FilterOptions) -> Filter:
    """A checked filter.

    raises  InvalidArguments for an unknown name or state, InvalidJob for a value that can't be
    """
    for name in options:
        if name not in FilterOptions.__annotations__:
            raise InvalidArguments(f"unknown filter {name!r}{nearest(name, FilterOptions.__annotations__)}")
    state = options.get("state")
    if state is not None and state not in State.__members__.values():
        raise InvalidArguments(f"unknown state {state!r}{nearest(str(state), [known.value for known in State])}")
    kind, queue, since, until = options.get("kind"), options.get("queue"), options.get("since"), options.get("until")
    tenant, tag = options.get("tenant"), options.get("tag")
    return Filter(
        state=None if state is None else State(state),
        kind=None if kind is None else check_name(kind, "kind"),
        queue=None if queue is None else check_name(queue, "queue"),
        tenant=None if tenant is None else check_tenant(tenant),
        tag=None if tag is None else check_tag(tag, "tag"),
        since=None if since is None else check_instant(since, "since"),
        until=None if until is None else check_instant(until, "until"),
    )


class Run(Protocol):
    """Runs a statement on a connection, or on one of the pool's."""

    def __call__(self, statement: Statement[T], conn: object | None, /) -> T: ...


class Arun(Protocol):
    """The same, awaited."""

    def __call__(self, statement: Statement[T], conn: object | None, /) -> Awaitable[T]: ...


Build = Callable[[Sequence[int]], Statement[dict[int, str]]]


class Selection:
    """The jobs that fit a filter at the time a verb is called. Each verb answers with how often it had which answer."""

    def __init__(self, filter: Filter, *, schema: str, run: Run, arun: Arun) -> None:
        if filter == Filter():
            raise InvalidArguments("where(): name at least one filter; all jobs at once is too easily a mistake")
        self._filter = filter
        self._schema = schema
        self._run = run
        self._arun = arun

    def cancel(self, *, reason: str | None = None, conn: object | None = None) -> dict[str, int]:
        """Cancel them all: waiting ones end now, running ones are asked to."""
        return self._apply(self._cancel(Verb.CANCEL, reason), conn)

    async def acancel(self, *, reason: str | None = None, conn: object | None = None) -> dict[str, int]:
        """Cancel them all: waiting ones end now, running ones are asked to."""
        return await self._aapply(self._cancel(Verb.CANCEL, reason), conn)

    def stop(self, *, reason: str | None = None, conn: object | None = None) -> dict[str, int]:
        """Park them all, to be resumed by retry."""
        return self._apply(self._cancel(Verb.STOP, reason), conn)

    async def astop(self, *, reason: str | None = None, conn: object | None = None) -> dict[str, int]:
        """Park them all, to be resumed by retry."""
        return await self._aapply(self._cancel(Verb.STOP, reason), conn)

    def retry(self, *, restart: bool = False, conn: object | None = None) -> dict[str, int]:
        """Make them available now."""
        return self._apply(lambda ids: control.retry(ids, restart=restart, schema=self._schema), conn)

    async def aretry(self, *, restart: bool = False, conn: object | None = None) -> dict[str, int]:
        """Make them available now."""
        return await self._aapply(lambda ids: control.retry(ids, restart=restart, schema=self._schema), conn)

    def reschedule(
        self, *, at: datetime | None = None, delay: timedelta | float | None = None, conn: object | None = None
    ) -> dict[str, int]:
        """Let them run at another time."""
        return self._apply(rescheduling(at, delay, self._schema), conn)

    async def areschedule(
        self, *, at: datetime | None = None, delay: timedelta | float | None = None, conn: object | None = None
    ) -> dict[str, int]:
        """Let them run at another time."""
        return await self._aapply(rescheduling(at, delay, self._schema), conn)

    def set_priority(self, priority: int, *, conn: object | None = None) -> dict[str, int]:
        """Give them another priority."""
        return self._apply(self._prioritise(priority), conn)

    async def aset_priority(self, priority: int, *, conn: object | None = None) -> dict[str, int]:
        """Give them another priority."""
        return await self._aapply(self._prioritise(priority), conn)

    def delete(self, *, conn: object | None = None) -> dict[str, int]:
        """Remove those that are not running, with their history."""
        return self._apply(lambda ids: control.delete(ids, schema=self._schema), conn)

    async def adelete(self, *, conn: object | None = None) -> dict[str, int]:
        """Remove those that are not running, with their history."""
        return await self._aapply(lambda ids: control.delete(ids, schema=self._schema), conn)

    def _cancel(self, verb: Verb, reason: str | None) -> Build:
        checked = check_reason(reason)
        return lambda ids: control.cancel(ids, action=verb, reason=checked, schema=self._schema)

    def _prioritise(self, priority: int) -> Build:
        checked = check_priority(priority)
        return lambda ids: control.set_priority(ids, priority=checked, schema=self._schema)

    def _apply(self, build: Build, conn: object | None) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for ids in self._pages(conn):
            counts.update(self._run(build(ids), conn).values())
        return dict(counts)

    async def _aapply(self, build: Build, conn: object | None) -> dict[str, int]:
        counts: Counter[str] = Counter()
        async for ids in self._apages(conn):
            counts.update((await self._arun(build(ids), conn)).values())
        return dict(counts)

    def _pages(self, conn: object | None) -> Iterator[list[int]]:
        before: int | None = None
        while ids := self._run(self._match(before), conn):
            yield ids
            before = ids[-1]

    async def _apages(self, conn: object | None) -> AsyncIterator[list[int]]:
        before: int | None = None
        while ids := await self._arun(self._match(before), conn):
            yield ids
            before = ids[-1]

    def _match(self, before: int | None) -> Statement[list[int]]:
        return control.match(self._filter, limit=PAGE, before=before, schema=self._schema)


def rescheduling(at: datetime | None, delay: timedelta | float | None, schema: str) -> Build:
    """The statement that lets jobs run at another time.

    raises  InvalidJob unless exactly one of an aware `at` and a `delay` is given
    """
    if (at is None) is (delay is None):
        raise InvalidJob("reschedule: give either at= (an aware datetime) or delay=")
    instant = None if at is None else check_instant(at, "at")
    wait = None if delay is None else timedelta(seconds=check_delay(delay))
    return lambda ids: control.reschedule(ids, at=instant, delay=wait, schema=schema)
