"""Environments for peers, made on demand in a cache directory: a virtual environment or node_modules each.

Guarantees: versions are those named by the peer's file; an environment is complete or not there; what can't be made
says why and what to do.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.peers.interface import Environment, Unavailable

DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pgqueue-benchmarks"
ROOT = Path(__file__).parent.parent.parent
PROGRAMS = Path(__file__).parent / "programs"
READY = ".ready"
MINUTES = 10
PINNED = re.compile(r"\[|==")  # after a package's name
UNSEEN = ("PG", "PYTHON", "NODE_", "OBAN_", "CELERY_", "DATABASE_", "GRAPHILE_")
SEEN = {"NODE_EXTRA_CA_CERTS"}  # npm can't reach a registry behind a certificate of one's own without it
NODE = "22.23.3"  # npm brings it where the system's is older: the program itself, no install script
MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}  # as npm says it
NODE_AT_LEAST = (22, 18)
NEWER_PYTHONS = ("python3.14", "python3.13", "python3.12")


def python_peer(name: str, *packages: str, at_least: tuple[int, int] = (3, 11)) -> Callable[[Path], Environment]:
    """A recipe: a virtual environment with these packages, and programs/<name>.py in it."""
    return functools.partial(_python_environment, name, packages, at_least)


def node_peer(name: str, title: str, *packages: str) -> Callable[[Path], Environment]:
    """A recipe: node_modules with these packages, and programs/<name>.cjs on them."""
    return functools.partial(_node_environment, name, title, packages)


def _python_environment(name: str, packages: Sequence[str], at_least: tuple[int, int], cache: Path) -> Environment:
    interpreter = _python(at_least, name)

    def make(home: Path) -> None:
        _run(
            [interpreter, "-m", "venv", str(home)], f"{name} needs a virtual environment: apt-get install python3-venv"
        )
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *packages], f"{name}: pip can't install {', '.join(packages)}")

    home = made(cache, name, [interpreter, *packages], make)
    python = str(home / "bin" / "python")
    frozen = _run([python, "-m", "pip", "freeze", "--disable-pip-version-check"], f"{name}: pip freeze")
    everything = dict(line.split("==", 1) for line in frozen.splitlines() if "==" in line)
    versions = {each: everything[each] for each in (PINNED.split(package)[0] for package in packages)}
    versions["python"] = _run([python, "-c", "import platform; print(platform.python_version())"], name).strip()
    return Environment((python, "-m", f"benchmarks.peers.programs.{name}"), versions, everything=everything)


def _python(at_least: tuple[int, int], name: str) -> str:
    """An interpreter of that version or a newer one: this one, PATH's, or pyenv's."""
    if sys.version_info >= at_least:
        return sys.executable
    for candidate in _newer_pythons():
        check = f"import sys; sys.exit(sys.version_info < {at_least})"
        if subprocess.run([candidate, "-c", check], capture_output=True, check=False).returncode == 0:
            return candidate
    wanted = ".".join(map(str, at_least))
    raise Unavailable(f"{name} needs Python {wanted} or newer, and there is none on PATH nor in pyenv: install one")


def _newer_pythons() -> Iterator[str]:
    for command in NEWER_PYTHONS:
        if found := shutil.which(command):
            yield found
        for home in sorted((Path.home() / ".pyenv" / "versions").glob(f"{command.removeprefix('python')}.*")):
            yield str(home / "bin" / "python")


def _node_environment(name: str, title: str, packages: Sequence[str], cache: Path) -> Environment:
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise Unavailable(f"{title} needs node and npm: apt-get install nodejs npm")
    system = _run(["node", "--version"], title).strip()
    brought = f"node-{platform.system().lower()}-{MACHINES.get(platform.machine().lower(), platform.machine())}"
    wanted = list(packages)
    if tuple(map(int, system.lstrip("v").split(".")[:2])) < NODE_AT_LEAST:
        wanted.append(f"{brought}@{NODE}")

    def make(home: Path) -> None:
        home.mkdir(parents=True)
        (home / "package.json").write_text('{"private": true}\n')
        options = ["--silent", "--no-audit", "--no-fund", "--prefix", str(home)]
        _run(["npm", "install", *options, *wanted], f"{title}: npm can't install {', '.join(wanted)}")

    modules = made(cache, name, wanted, make) / "node_modules"
    node = str(modules / brought / "bin" / "node") if len(wanted) > len(packages) else "node"
    names = [package.rpartition("@")[0] for package in packages]
    versions = {each: json.loads((modules / each / "package.json").read_text())["version"] for each in names}
    versions["node"] = _run([node, "--version"], title).strip().lstrip("v")
    return Environment((node, str(PROGRAMS / f"{name}.cjs")), versions, {"NODE_PATH": str(modules)})


def made(cache: Path, name: str, recipe: Sequence[str], make: Callable[[Path], None]) -> Path:
    """The directory of that recipe: made if it isn't there, or only half."""
    home = cache / f"{name}-{hashlib.sha256(json.dumps(list(recipe)).encode()).hexdigest()[:10]}"
    if not (home / READY).exists():
        print(f"installing {name} in {home}", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        make(home)
        (home / READY).touch()
    return home


def clean() -> dict[str, str]:
    """This process's environment, less what would change how a peer behaves without being seen."""
    return {name: value for name, value in os.environ.items() if name in SEEN or not name.startswith(UNSEEN)}


def _run(command: Sequence[str], what: str) -> str:
    """Its output. Raises Unavailable with the end of what it said."""
    try:
        done = subprocess.run(
            command, env=clean(), cwd=ROOT, capture_output=True, text=True, timeout=60 * MINUTES, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{what}: {error}") from error
    if done.returncode:
        raise Unavailable(f"{what}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout
