"""Resumable jobs are an addition: without their files and the lines that name them there is still a queue."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pgqueue"
FILES = (
    "core/checkpoint.py", "features/annotations.py", "features/local_marks.py", "features/memory.py",
    "features/steps.py", "store/local.py", "store/local.sql", "local.py", "state_file.py", "cli/run.py",
)  # fmt: skip
LINES = {  # where a feature is put in
    "app.py": [(r"from pgqueue\.features\.memory import noted\n", ""), (r", on_note=noted", "")],
    "context.py": [
        (r"from pgqueue\.features\.steps import .*\n", ""),
        (r"\(BaseContext, Steps, ", "(BaseContext, "),
        (r"\(BaseContext, AsyncSteps, ", "(BaseContext, "),
    ],
}
PROGRAM = """
import pgqueue, sys
q = pgqueue.PgQueue(sys.argv[1])

@q.task(retry=pgqueue.Retry(max_attempts=2, cap=0))
def add(ctx: pgqueue.Context, a: int, b: int) -> int:
    if ctx.attempt == 1:
        raise OSError
    return a + b

@q.task
async def double(ctx: pgqueue.AsyncContext, n: int) -> int:
    return 2 * n

worker = q.worker()
worker.start()
print(q.result(add.enqueue(1, 2).id, timeout=30), q.result(double.enqueue(2).id, timeout=30), pgqueue.__file__)
worker.close()
q.close()
"""


def test_a_queue_works_without_resumable_jobs(fresh_db: str, tmp_path: Path) -> None:
    copy = tmp_path / "pgqueue"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        (copy / file).unlink()
    for file, changes in LINES.items():
        text = (copy / file).read_text(encoding="utf-8")
        for pattern, replacement in changes:
            text, count = re.subn(pattern, replacement, text)
            assert count == 1, f"{file}: {pattern}"
        (copy / file).write_text(text, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, fresh_db],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["3", "4", str(copy / "__init__.py")], done.stderr
