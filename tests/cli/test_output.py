"""What is printed: aligned, within the terminal, harmless, and readable by programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from pgqueue.cli import output
from pgqueue.cli.options import read_seconds
from pgqueue.cli.output import Column, ago, cut, json_text, plain, span, table, width
from pgqueue.core.draft import EnqueuedJob

COLUMNS = (
    Column(title="ID", right=True),
    Column(title="KIND"),
    Column(title="TENANT", optional=True),
    Column(title="DETAIL", shrinks=True),
)


def printed(capsys: pytest.CaptureFixture[str], rows: list[tuple[str, ...]]) -> list[str]:
    table(COLUMNS, rows)
    return capsys.readouterr().out.splitlines()


def test_columns_are_aligned_and_a_pipe_gets_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, [("1", "mail", "", "x" * 200), ("10", "大", "", "y")]) == [
        "ID  KIND  DETAIL",
        f" 1  mail  {'x' * 200}",
        "10  大    y",
    ]


@pytest.mark.parametrize("columns", [30, 40, 80, 500])
def test_a_table_fits_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "terminal_width", lambda: columns)
    lines = printed(capsys, [("1", "mail", "shop", "大" * 100), ("2", "mail", "", "y" * 100)])
    assert all(width(line) <= columns for line in lines)
    assert ("TENANT" in lines[0]) is (columns > 30)
    assert ("…" in lines[1]) is (columns < 200)


def test_nothing_from_the_database_controls_the_terminal() -> None:
    assert plain("a\x1b[31m\nb\u202e\x00") == r"a\x1b[31m b\u202e\x00"
    assert plain("größer 大") == "größer 大"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "400us"),
        (0.045, "45ms"),
        (2.54, "2.5s"),
        (59, "59s"),
        (300, "5m"),
        (7200, "2h"),
        (864000, "10d"),
    ],
)
def test_lengths_of_time_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_times_to_come_are_told_from_those_that_have_been() -> None:
    now = datetime.now(UTC)
    assert ago(now + timedelta(minutes=5)) == "in 5m"
    assert ago(now - timedelta(minutes=5)) == "5m"
    assert ago(None) == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("30s", 30), ("2h30m", 9000), ("1d", 86400), ("1 w", 604800), ("0.5h", 1800)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert read_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5y", "h", "-5", "1h!", "1e3", "5m 3"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert read_seconds(text) is None


def test_text_is_cut_by_columns_not_by_characters() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"
    assert cut("大大大大", 6) == "大大…"


def test_json_is_one_line_with_durations_in_seconds() -> None:
    took = json_text({"duration": timedelta(milliseconds=1500), "at": datetime(2026, 1, 31, tzinfo=UTC)})
    assert json.loads(took) == {"duration": 1.5, "at": "2026-01-31T00:00:00Z"}
    assert json_text(EnqueuedJob(1, True, "mail", "q")) == '{"id":1,"inserted":true,"kind":"mail","queue":"q"}'
    assert "\n" not in json_text({"text": "a\nb"})
