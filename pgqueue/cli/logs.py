"""What a worker writes to stderr: one line per event, with its time; tracebacks follow their line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO pgqueue.worker: text`."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {_one_line(record.getMessage())}"
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """One JSON object per event: time, level, logger, message, and traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace = _trace(self, record)
        return json.dumps(said | ({"traceback": trace} if trace else {}), ensure_ascii=False)


def begin_logging(level: str, *, as_json: bool) -> None:
    """Log to stderr from here on, unless the application has set up the root logger itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # Others' debug lines (asyncio's selector, Alembic's) are not what --log-level debug asks for.
    logging.getLogger("asyncio").setLevel(logging.INFO)


def _one_line(text: str) -> str:
    return text if text.isprintable() else " ".join(each.strip() for each in text.splitlines())


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)
