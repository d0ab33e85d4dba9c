"""Workers that a program starts for itself, each a real `pgqueue worker` in a process of its own.

Guarantees: it gets no terminal and no Ctrl-C, for the program stops it itself; it dies with the program, even a killed
one (Linux), unless it is to stay; it finds this pgqueue, installed or not.
Never: looks after them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from pgqueue.engine.death import mortal

PACKAGES = str(Path(__file__).parents[2])  # the directory that pgqueue is imported from


def spawn_worker(
    options: Sequence[str], *, env: Mapping[str, str], log: IO[bytes], cwd: Path | None = None, stays: bool = False
) -> subprocess.Popen[bytes]:
    """Start one. What it says goes into the log."""
    path = os.pathsep.join(filter(None, [PACKAGES, env.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "worker", *options],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env={**env, "PYTHONPATH": path},
        start_new_session=True,
        preexec_fn=None if stays or sys.platform == "win32" else mortal(os.getpid(), signal.SIGKILL),
    )
