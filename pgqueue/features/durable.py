"""Files that are there as a whole or not at all.

Guarantees: whoever opens one sees what it said before or all that it says now, even after a crash of the machine; what
`replace` has returned from outlives one. Only its owner may read it, unless the block gives it another mode.
Never: leaves anything behind when it fails (a killed process may leave a hidden file beside it).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def replace(path: Path, content: bytes) -> None:
    """Let the file have this content, durably."""
    with replacing(path) as file:
        file.write(content)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of another when the block has ended well; a crash may still bring that one back."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name:.40}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
