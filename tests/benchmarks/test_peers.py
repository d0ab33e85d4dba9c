"""The comparison with other queues: what it says when a peer can't be had or fails, and that it measures at all.

pgqueue itself stands for the peers here: their environments come from package registries.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from benchmarks.harness import Bench
from benchmarks.peers import markdown, pgqueue, plots, table
from benchmarks.peers.__main__ import main
from benchmarks.peers.install import PROGRAMS, made, node_peer, python_peer
from benchmarks.peers.interface import DRAIN, ENQUEUE, LATENCY, WORKLOADS, Configuration, Environment, Unavailable
from benchmarks.peers.postgres import PostgresPeer
from benchmarks.peers.registry import PEERS
from benchmarks.peers.runner import Outcome, Result, run
from benchmarks.peers.stores import url
from benchmarks.report import Figure

REPOSITORY = Path(__file__).parents[2]
TINY = replace(
    pgqueue.PEER, enqueues=(20, 200), configurations=(Configuration("default", "as it comes", {}, jobs=400),)
)


def broken(cache: Path) -> Environment:
    """A peer whose programs end at once."""
    return Environment((sys.executable, "-c", "raise SystemExit('no such table: jobs')"), {"broken": "1.0"})


def absent(cache: Path) -> Environment:
    raise Unavailable("absent needs a machine of its own: buy one")


BROKEN = replace(TINY, name="broken", title="Broken", recipe=broken)
ABSENT = replace(TINY, name="absent", title="Absent", recipe=absent)


def result_of(peer: PostgresPeer, **figures: float) -> Result:
    found = {name.replace("_", " "): Figure([value, 2 * value, 3 * value]) for name, value in figures.items()}
    return Result(peer, peer.configurations[0], found)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_called_as_its_program_and_comes_with_its_defaults_first(name: str) -> None:
    peer = PEERS[name]
    assert peer.name == name
    assert (PROGRAMS / f"{name}.py").exists() or (PROGRAMS / f"{name}.cjs").exists()
    assert peer.configurations[0].name == "default"
    assert set(peer.configurations[0].workloads) == set(WORKLOADS)
    assert json.dumps(dict(peer.configurations[-1].settings))


@pytest.mark.parametrize(
    "dsn",
    [
        "host=127.0.0.1 port=5433 user=me password='p@ss/w:rd' dbname=other",
        "postgresql://me@[::1]:5433/other",
        "host=/var/run/postgresql port=5433 user=me",
    ],
)
def test_the_address_of_a_database_on_the_same_server_is_a_url(dsn: str) -> None:
    address = url(dsn, "one of_ours")
    assert address.startswith("postgresql://")
    assert conninfo_to_dict(address) == {**conninfo_to_dict(dsn), "dbname": "one of_ours"}


def test_without_npm_a_node_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="Some Queue needs node and npm: apt-get install nodejs npm"):
        node_peer("some", "Some Queue", "some-queue@1.0.0")(tmp_path)


def test_without_a_newer_python_a_peer_says_which_one_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Unavailable, match=r"some needs Python 3\.99 or newer"):
        python_peer("some", "some-queue==1.0.0", at_least=(3, 99))(tmp_path)


def test_an_environment_that_was_half_made_is_made_again_and_a_whole_one_is_kept(tmp_path: Path) -> None:
    times: list[Path] = []

    def fail(home: Path) -> None:
        home.mkdir()
        (home / "half").touch()
        raise Unavailable("the network is down")

    def succeed(home: Path) -> None:
        home.mkdir()
        times.append(home)

    with pytest.raises(Unavailable, match="the network is down"):
        made(tmp_path, "some", ["some==1"], fail)
    home = made(tmp_path, "some", ["some==1"], succeed)
    assert not (home / "half").exists()
    assert made(tmp_path, "some", ["some==1"], succeed) == home
    assert made(tmp_path, "some", ["some==2"], succeed) != home
    assert len(times) == 2


def test_each_workload_is_measured_with_real_processes(fresh_db: str, tmp_path: Path) -> None:
    outcome = run(Bench(fresh_db, quick=True), [TINY], WORKLOADS, rounds=1, cache=tmp_path)
    (result,) = outcome.results
    assert result.failures == {}
    assert set(result.figures) == set(table.COLUMNS)
    assert all(figure.median > 0 for figure in result.figures.values())


def test_a_peer_that_fails_or_is_absent_is_reported_and_the_others_are_measured(fresh_db: str, tmp_path: Path) -> None:
    bench = Bench(fresh_db, quick=True)
    outcome = run(bench, [BROKEN, ABSENT, TINY], [ENQUEUE], rounds=2, cache=tmp_path)
    failed, ours = outcome.results
    assert "no such table: jobs" in failed.failures[ENQUEUE]
    assert len(ours.figures["enqueue one"].samples) == 2
    said = "\n".join(table.lines(outcome, {}, quick=True))
    assert "SKIPPED Absent: absent needs a machine of its own: buy one" in said
    assert "FAILED Broken, enqueue: ProgramFailed" in said


def test_a_server_whose_commits_are_no_promise_is_refused(fresh_db: str) -> None:
    with pytest.raises(SystemExit, match="fsync and synchronous_commit are off"):
        main(["--dsn", fresh_db, "--quick", "--only", "pgqueue"])


def test_a_name_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "pgqueue,sidekiq"])
    assert "there is no 'sidekiq': choose from pgqueue" in capsys.readouterr().err


def test_a_ratio_above_one_means_that_pgqueue_is_better() -> None:
    ours = result_of(pgqueue.PEER, drain=3000.0, latency_p50=2.0)
    theirs = result_of(BROKEN, drain=100.0, latency_p50=8.0)
    said = "\n".join(table.lines(Outcome([ours, theirs], {}, {}), {}, quick=False))
    ratios = said.partition("how many times as good")[2].splitlines()[2]
    assert ratios.split() == ["Broken", "30.00", "-", "-", "4.00", "-"]


def test_pictures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ours = result_of(pgqueue.PEER, drain=3000.0, latency_p50=2.0, latency_p99=4.0)
    theirs = replace(result_of(BROKEN, latency_p50=8.0, latency_p99=9.0), too_slow={DRAIN: "3 of 4 jobs"})
    environments = {each.name: Environment((), {}) for each in (pgqueue.PEER, BROKEN)}
    document = table.as_json(Outcome([ours, theirs], environments, {}), {}, quick=True)
    wanted = {tmp_path / f"{name}.{suffix}" for name in (DRAIN, LATENCY) for suffix in ("png", "svg")}
    assert set(plots.write(document, tmp_path)) == wanted
    assert all(path.stat().st_size > 1000 for path in wanted)


def test_the_readme_shows_the_measurement_that_is_kept() -> None:
    kept = json.loads((REPOSITORY / "benchmarks" / "results" / "peers.json").read_text(encoding="utf-8"))
    assert "\n".join(markdown.lines(kept)) in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert not kept["quick"]
    assert {result["peer"] for result in kept["results"]} == set(PEERS)
    assert not kept["skipped"]
    assert not any(result["failures"] for result in kept["results"])
