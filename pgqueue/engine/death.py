"""How processes end: with their parents, and of what.

Guarantees (Linux): a process that called `die_with` gets the signal when the thread that started it ends, however it
ends. Elsewhere there is no such signal; there a child notices the end of its parent by the end of its pipe.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def mortal(parent: int, signum: signal.Signals) -> Callable[[], None]:
    """What a process runs first to get `signum` when its parent, whose id is `parent`, is gone.

    It may run between fork and exec, so what it needs is loaded here.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
        if os.getppid() != parent:  # it was gone before we asked
            os._exit(1)

    return die_with_parent


def how_it_ended(code: int) -> str:
    """An exit code as `subprocess` gives it (negative: a signal) in words: `died of signal 9 (SIGKILL)`."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"died of signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"died of signal {-code}"
