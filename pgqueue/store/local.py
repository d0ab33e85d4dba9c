"""Marks of jobs that run without a worker, as statements. Pure: none of them does I/O."""

from __future__ import annotations

from uuid import UUID

from pgqueue.store.statement import Statement, queries


def install(*, schema: str) -> Statement[UUID]:
    """Which installation of the schema this is."""
    return Statement(_query("install", schema), {}, lambda rows: UUID(str(rows[0][0])))


def mark(install: UUID, job: int, patch: str, *, schema: str) -> Statement[None]:
    """Make a part of a checkpoint durable with the caller's transaction, on any connection.

    job    negative
    patch  JSON text {"done": {}, "cursor": {}, "data": {}}, any part of it
    fails with SQLSTATE PQ003 if the connection is to another installation
    """
    params = {"install": str(install), "job": job, "patch": patch}
    return Statement(_query("mark", schema), params, lambda rows: None)


def wait_for_marks(job: int, *, schema: str) -> Statement[None]:
    """Return when no transaction is open any more that has marked something: `marks` are all there will be."""
    return Statement(_query("wait_for_marks", schema), {"job": job}, lambda rows: None)


def has_all_marks(job: int, *, schema: str) -> Statement[bool]:
    """Is no transaction open that has marked something?"""
    return Statement(_query("has_all_marks", schema), {"job": job}, lambda rows: bool(rows[0][0]))


def marks(job: int, *, schema: str) -> Statement[list[tuple[str, str, str]]]:
    """What was committed: part, name, and JSON text of the value."""
    return Statement(
        _query("marks", schema),
        {"job": job},
        lambda rows: [(str(part), str(name), str(value)) for part, name, value in rows],
    )


def forget(job: int, *, schema: str) -> Statement[None]:
    """Remove the marks."""
    return Statement(_query("forget", schema), {"job": job}, lambda rows: None)


def _query(name: str, schema: str) -> str:
    return queries("local.sql", schema)[name]
