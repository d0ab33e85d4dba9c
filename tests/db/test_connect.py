"""Our own connections: where to, with which settings, and never a password in a text."""

from __future__ import annotations

import traceback
from datetime import timedelta

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue.db.connect import aconnect, connect, conninfo, describe, is_outage, is_transient, redact, resolve_dsn
from pgqueue.errors import ConfigError, LeaseLost, Unreachable, WaitTimeout


@pytest.mark.parametrize(
    ("given", "environ", "found"),
    [
        ("dbname=a", {"PGQUEUE_DSN": "dbname=b", "DATABASE_URL": "dbname=c"}, "dbname=a"),
        (None, {"PGQUEUE_DSN": "dbname=b", "DATABASE_URL": "dbname=c"}, "dbname=b"),
        (None, {"PGQUEUE_DSN": "", "DATABASE_URL": "postgres://h/c"}, "postgres://h/c"),
        (None, {}, ""),
        ("postgresql+psycopg://u:p@h/d", {}, "postgresql://u:p@h/d"),
        ("postgresql+asyncpg://h/d?ssl=require", {}, "postgresql://h/d?sslmode=require"),
        (" postgresql:///d\n", {}, "postgresql:///d"),
    ],
)
def test_the_dsn_comes_from_the_nearest_place(given: str | None, environ: dict[str, str], found: str) -> None:
    assert resolve_dsn(given, environ=environ) == found


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("sqlite:///s3cret.db", "not PostgreSQL"),
        ("mysql://u:s3cret@h/d", "not PostgreSQL"),
        ("host=h password=my s3cret dbname=d", 'missing "="'),
        ("host=h password='s3cret", "unterminated quoted string"),
        ("postgresql://u:a/s3cret@h/d", "%40"),
        ("postgresql://u:a@s3cret@h/d", "%40"),
        ("postgresql://u:a:s3cret/x@h/d", "%40"),
        ("postgresql://u:%zs3cret@h/d", "percent-encoded"),
        ("postgresql://h/d?sslmod=x&password=s3cret", '"sslmod"'),
        ("sslmod=x password=s3cret", '"sslmod"'),
    ],
)
def test_a_bad_dsn_says_what_is_wrong_and_never_the_password(dsn: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_dsn(None, environ={"DATABASE_URL": dsn})
    shown = "".join(traceback.format_exception(caught.value))
    assert says.strip('"') in shown
    assert "DATABASE_URL" in shown
    assert "s3cret" not in shown or dsn.startswith("sqlite")


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:s3cret@h:1/d", "postgresql://u:***@h:1/d"),
        ("postgresql://u:a@s3:c/ret@h/d?x=1", "postgresql://u:***@h/d?x=1"),
        ("postgresql://u@h/d?password=s3cret&sslpassword=s3", "postgresql://u@h/d?password=***&sslpassword=***"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("host=h password=s3cret dbname=d", "host=h password=*** dbname=d"),
        (r"password = 's3\' cret' host=h", "password = *** host=h"),
    ],
)
def test_redact_shows_all_but_the_password(dsn: str, shown: str) -> None:
    assert redact(dsn) == shown


def test_a_database_is_described_without_a_password() -> None:
    assert describe("postgresql://u:s3cret@h:1/d") == "database d on h:1"


def test_defaults_notice_a_dead_network() -> None:
    given = conninfo_to_dict(conninfo("host=h", role="leader"))
    assert {"connect_timeout": "5", "tcp_user_timeout": "10000", "application_name": "pgqueue leader"}.items() <= (
        given.items()
    )
    assert (given["keepalives_idle"], given["keepalives_interval"], given["keepalives_count"]) == ("5", "2", "3")
    assert "target_session_attrs" not in given


def test_the_dsn_wins_over_every_default() -> None:
    text = "host=a,b connect_timeout=9 tcp_user_timeout=1 application_name=x target_session_attrs=any keepalives_idle=8"
    assert conninfo_to_dict(text).items() <= conninfo_to_dict(conninfo(text, role="leader")).items()


def test_of_several_hosts_the_one_that_takes_writes_is_used() -> None:
    assert conninfo_to_dict(conninfo("postgresql://a,b/d", role="x"))["target_session_attrs"] == "read-write"


def test_behind_a_pooler_no_options_are_sent() -> None:
    assert "options" not in conninfo_to_dict(conninfo("host=h", role="x", pooled=True))
    with_own = conninfo("host=h options='-c work_mem=1MB'", role="x", pooled=True)
    assert conninfo_to_dict(with_own)["options"] == "-c work_mem=1MB"


def test_limits_of_the_role_do_not_reach_our_connections(fresh_db: str) -> None:
    with psycopg.connect(fresh_db, autocommit=True) as admin:
        admin.execute("create role limited login superuser")
        try:
            for setting in (
                "statement_timeout = 1",
                "lock_timeout = 1",
                "idle_session_timeout = 1",
                "default_transaction_isolation = 'serializable'",
            ):
                admin.execute(f"alter role limited set {setting}")
            dsn = make_conninfo(fresh_db, user="limited")
            with connect(dsn, role="test") as conn:
                found = conn.execute(
                    """select current_setting('statement_timeout'), current_setting('lock_timeout'),
                       current_setting('idle_session_timeout'), current_setting('transaction_isolation'),
                       current_setting('application_name')"""
                ).fetchone()
            assert found == ("0", "0", "0", "read committed", "pgqueue test")
            with connect(make_conninfo(dsn, options="-c statement_timeout=7000"), role="test") as conn:
                assert conn.execute("show statement_timeout").fetchone() == ("7s",)
        finally:
            admin.execute("drop role limited")


async def test_both_colours_are_in_autocommit_mode_and_prepare_only_where_allowed(dsn: str) -> None:
    with connect(dsn, role="test") as conn:
        assert (conn.autocommit, conn.prepare_threshold) == (True, 5)
    with connect(dsn, role="test", pooled=True) as conn:
        assert conn.prepare_threshold is None
    async with await aconnect(dsn, role="test", prepare=False, statement_timeout=timedelta(seconds=3)) as aconn:
        assert (aconn.autocommit, aconn.prepare_threshold) == (True, None)
        assert await (await aconn.execute("show statement_timeout")).fetchone() == ("3s",)


def _raised(dsn: str, state: str) -> Exception:
    with psycopg.connect(dsn) as conn, pytest.raises(psycopg.Error) as caught:
        conn.execute(f"do $$ begin raise exception using errcode = '{state}'; end $$")
    return caught.value


@pytest.mark.parametrize(
    ("state", "outage", "transient"),
    [
        *[(s, True, False) for s in ("08006", "57P01", "57P02", "57P03", "57P05", "53300", "53100", "25006", "54000")],
        *[(s, False, True) for s in ("40001", "40P01", "55P03")],
        *[(s, False, False) for s in ("23505", "42P01", "57014", "PQ001")],
    ],
)
def test_the_servers_reason_says_whether_to_try_again(dsn: str, state: str, outage: bool, transient: bool) -> None:
    error = _raised(dsn, state)
    assert (is_outage(error), is_transient(error)) == (outage, transient)


def test_a_server_that_does_not_answer_is_an_outage() -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        connect("host=127.0.0.1 port=1", role="test")
    assert is_outage(caught.value)
    assert is_outage(ConnectionResetError())
    assert is_outage(Unreachable("no connection"))


def test_pgqueues_other_errors_and_mistakes_are_no_outage() -> None:
    assert not is_outage(WaitTimeout("not finished"))
    assert not is_outage(LeaseLost("gone"))
    assert not is_outage(ValueError("x"))
