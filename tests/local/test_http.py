"""`ctx.http`: one client an attempt; in a local run it reaches files."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from pgqueue import AsyncContext, Context, PgQueue, State
from pgqueue.features.files import AsyncClient, Client
from pgqueue.local import LocalJob
from tests.cli.commands import environment
from tests.engine.kit import done, working


class Answers(BaseHTTPRequestHandler):
    """Sets a cookie, tells which it was sent, and leads astray."""

    def do_GET(self) -> None:
        body = self.headers.get("cookie", "").encode()
        self.send_response(302 if self.path.startswith("/to/") else 200)
        if self.path.startswith("/to/"):
            self.send_header("location", self.path.removeprefix("/to/"))
        self.send_header("set-cookie", "seen=yes")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Not to stderr."""


class Stays(Answers):
    """Keeps its connections open, so that there is one to be closed."""

    protocol_version = "HTTP/1.1"


@pytest.fixture
def template(request: pytest.FixtureRequest) -> object:
    """Overrides the one that runs every test on each server: here is little of the database."""
    return request.getfixturevalue("newest_template")


@pytest.fixture
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with Client() as client:
        yield client


@pytest.fixture
async def aclient() -> AsyncIterator[httpx2.AsyncClient]:
    async with AsyncClient() as client:
        yield client


q = PgQueue()
seen: list[httpx2.Client | httpx2.AsyncClient] = []


@q.task
def fetch(ctx: Context, url: str, fails: bool = False) -> str:
    seen.append(ctx.http)
    assert ctx.http is ctx.http, "one for the whole attempt"
    first, second = ctx.http.get(url), ctx.http.get(url)
    if fails:
        raise ValueError("after it asked")
    return f"{first.text}|{second.text}"


@q.task
async def afetch(ctx: AsyncContext, url: str, fails: bool = False) -> str:
    seen.append(ctx.http)
    first, second = await ctx.http.get(url), await ctx.http.get(url)
    if fails:
        raise ValueError("after it asked")
    return f"{first.text}|{second.text}"


@q.task(executor="process")
def fetch_remotely(ctx: Context, url: str) -> str:
    return ctx.http.get(url).text


@q.task
def without_http(ctx: Context) -> None:
    seen.append(ctx.http)


def run(kind: str, state: Path, **args: object) -> LocalJob:
    return q.run_local(kind, args, state=state)


@pytest.mark.parametrize("kind", ["fetch", "afetch"])
def test_cookies_live_as_long_as_the_attempt(kind: str, site: str, state: Path) -> None:
    assert run(kind, state, url=site).result == "|seen=yes"
    assert run(kind, state, url=site).result == "|seen=yes", "the first request of the next one has none"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["fetch", "afetch"])
def test_the_client_is_closed_when_the_attempt_has_ended(kind: str, fails: bool, site: str, state: Path) -> None:
    job = run(kind, state, url=site, fails=fails)
    assert job.state is (State.RETRYABLE if fails else State.COMPLETED)
    assert seen.pop().is_closed


@pytest.mark.parametrize("kind", ["fetch", "afetch", "fetch_remotely"])
def test_a_local_job_reads_files(kind: str, tmp_path: Path, state: Path) -> None:
    (tmp_path / "list.txt").write_text("one")
    result = run(kind, state, url=(tmp_path / "list.txt").as_uri()).result
    assert result == ("one" if kind == "fetch_remotely" else "one|one")


def test_a_redirect_from_elsewhere_leads_to_no_file(site: str, tmp_path: Path, client: httpx2.Client) -> None:
    (tmp_path / "secret").write_text("secret")
    for url in (f"file://localhost{tmp_path}/secret", f"file://{tmp_path}/secret"):
        with pytest.raises(httpx2.UnsupportedProtocol):
            client.get(f"{site}/to/{url}", follow_redirects=True)


def test_a_workers_job_reaches_no_file(fresh_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_DSN", fresh_db)
    (tmp_path / "secret").write_text("secret")
    with working(q):
        for name in ("fetch", "afetch", "fetch_remotely"):
            for url in ((tmp_path / "secret").as_uri(), f"file://localhost{tmp_path}/secret"):
                job = q.enqueue(name, {"url": url}, max_attempts=1)
                (error,) = q.wait(job.id, 30).errors
                assert "UnsupportedProtocol" in str(error["type"]), error
    q.close()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    program = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "httpx2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from pgqueue import Context, PgQueue
q = PgQueue()
@q.task
def ask(ctx: Context) -> None:
    ctx.http
print(q.run_local("ask", state="job.json").error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert "MissingExtra" in done.stdout
    assert "pip install 'pgqueue-jobs[http]'" in done.stdout


# --- file:// ----------------------------------------------------------------------------------------------------------


def test_a_file_is_got_put_looked_at_and_deleted(tmp_path: Path, client: httpx2.Client) -> None:
    path = tmp_path / "list.txt"
    url = path.as_uri()
    assert client.get(url).status_code == 404
    assert client.put(url, content=b"one").status_code == 204
    assert (client.get(url).content, client.get(url).headers["content-length"]) == (b"one", "3")
    head = client.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "3")
    assert client.delete(url).status_code == 204
    assert not path.exists()
    assert client.delete(url).status_code == 404
    assert client.head(url).status_code == 404


async def test_a_coroutine_gets_the_same_answers(tmp_path: Path, aclient: httpx2.AsyncClient) -> None:
    url = (tmp_path / "list.txt").as_uri()
    assert (await aclient.get(url)).status_code == 404

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    assert (await aclient.put(url, content=chunks())).status_code == 204
    assert (await aclient.get(url)).text == "onetwo"
    assert (await aclient.head(url)).headers["content-length"] == "6"
    assert (await aclient.get(url, headers={"range": "bytes=3-"})).text == "two"
    assert (await aclient.post(url)).status_code == 405
    assert (await aclient.delete(url)).status_code == 204


@pytest.mark.parametrize(
    ("asked", "status", "body", "said"),
    [
        ("bytes=0-2", 206, b"012", "bytes 0-2/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
    ],
)
def test_a_range_of_bytes(
    asked: str, status: int, body: bytes, said: str | None, tmp_path: Path, client: httpx2.Client
) -> None:
    (tmp_path / "digits").write_bytes(b"0123456789")
    answer = client.get((tmp_path / "digits").as_uri(), headers={"range": asked})
    assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, body, said)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_a_directory_is_refused_and_stays(method: str, tmp_path: Path, client: httpx2.Client) -> None:
    (tmp_path / "inside").mkdir()
    assert client.request(method, (tmp_path / "inside").as_uri()).status_code == 403
    assert [path.name for path in tmp_path.iterdir()] == ["inside"], "not even a temporary file"


def test_no_directory_is_made_and_no_file_taken_for_one(tmp_path: Path, client: httpx2.Client) -> None:
    (tmp_path / "file").write_text("")
    assert client.put((tmp_path / "none" / "file").as_uri(), content=b"").status_code == 404
    assert client.put((tmp_path / "file" / "file").as_uri(), content=b"").status_code == 404


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_is_refused(tmp_path: Path, client: httpx2.Client) -> None:
    (tmp_path / "file").touch(mode=0)
    assert client.get((tmp_path / "file").as_uri()).status_code == 403


@pytest.mark.parametrize("method", ["POST", "PATCH", "OPTIONS", "MKCOL"])
def test_other_methods_are_refused_with_those_that_there_are(
    method: str, tmp_path: Path, client: httpx2.Client
) -> None:
    answer = client.request(method, tmp_path.as_uri())
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, PUT, DELETE")


@pytest.mark.parametrize(
    "name", ["a b", "a%20b", "a+b", "\u00e5\u00e4\u00f6 \u732b", "what?", "a#b", "100%", "a;b", "\udce9"]
)
def test_a_file_of_any_name_is_the_one_that_its_url_says(name: str, tmp_path: Path, client: httpx2.Client) -> None:
    path = tmp_path / name
    assert client.put(path.as_uri(), content=b"here").status_code == 204
    assert [os.fsencode(found) for found in os.listdir(tmp_path)] == [os.fsencode(name)]
    assert client.get(path.as_uri()).content == b"here"


def test_localhost_is_this_machine_and_no_other_host_is(tmp_path: Path, client: httpx2.Client) -> None:
    (tmp_path / "file").write_text("here")
    for url in (f"file://localhost{tmp_path}/file", f"file:{tmp_path}/file", f"FILE://{tmp_path}/file"):
        assert client.get(url).text == "here", url
    with pytest.raises(httpx2.UnsupportedProtocol, match="names no host"):
        client.get(f"file://elsewhere{tmp_path}/file")


def test_a_path_that_no_file_can_have_is_an_error_of_the_client(tmp_path: Path, client: httpx2.Client) -> None:
    with pytest.raises(httpx2.UnsupportedProtocol, match="NUL"):
        client.get(f"{tmp_path.as_uri()}/a%00b")
    with pytest.raises(httpx2.TransportError, match="too long"):
        client.put(f"{tmp_path.as_uri()}/{'a' * 300}", content=b"")
    assert client.put(f"{tmp_path.as_uri()}/{'a' * 255}", content=b"").status_code == 204


def test_an_upload_that_is_interrupted_leaves_the_old_file(tmp_path: Path, client: httpx2.Client) -> None:
    path = tmp_path / "list.txt"
    path.write_text("old")

    def breaks() -> Iterator[bytes]:
        yield b"new"
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        client.put(path.as_uri(), content=breaks())
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["list.txt"]


def test_an_upload_whose_source_is_missing_is_not_answered_as_if_its_target_were(
    tmp_path: Path, client: httpx2.Client
) -> None:
    def missing() -> Iterator[bytes]:
        yield (tmp_path / "source").read_bytes()

    with pytest.raises(FileNotFoundError):
        client.put((tmp_path / "target").as_uri(), content=missing())


async def test_the_same_of_a_coroutine(tmp_path: Path, aclient: httpx2.AsyncClient) -> None:
    async def missing() -> AsyncIterator[bytes]:
        yield b"begun"
        yield (tmp_path / "source").read_bytes()

    with pytest.raises(FileNotFoundError):
        await aclient.put((tmp_path / "target").as_uri(), content=missing())
    assert os.listdir(tmp_path) == []


def test_an_upload_keeps_the_mode_of_the_file_it_replaces(tmp_path: Path, client: httpx2.Client) -> None:
    path = tmp_path / "script"
    path.write_text("old")
    path.chmod(0o750)
    client.put(path.as_uri(), content=b"new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o750)


def test_a_file_that_is_new_is_everybodys_to_read(tmp_path: Path, client: httpx2.Client) -> None:
    path = tmp_path / "list.txt"
    client.put(path.as_uri(), content=b"new")
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_large_file_is_copied_piece_by_piece(tmp_path: Path, client: httpx2.Client) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        with client.stream("GET", source.as_uri()) as answer:
            client.put(target.as_uri(), content=answer.iter_bytes())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert target.stat().st_size == 64 << 20
    assert peak < 8 << 20


def test_a_file_that_shrinks_while_it_is_read_is_no_complete_answer(tmp_path: Path, client: httpx2.Client) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 200_000)
    with client.stream("GET", path.as_uri()) as answer:
        os.truncate(path, 10)
        with pytest.raises(httpx2.TransportError):
            answer.read()


def test_a_cancellation_that_is_under_way_while_the_client_is_closed_costs_no_slot(fresh_db: str) -> None:
    own = PgQueue(fresh_db)

    @own.task
    async def cancels_itself(ctx: AsyncContext, url: str) -> str:
        await ctx.http.get(url)
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        return "done"

    @own.task
    async def next_one() -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Stays) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        first = cancels_itself.enqueue(f"http://127.0.0.1:{server.server_port}").id
        second = next_one.enqueue().id
        with working(own, {"default": 1}):
            ended, after = done(own, first, second)
        server.shutdown()
        thread.join()
    own.close()
    assert (ended.state, ended.result, after.state) == (State.COMPLETED, "done", State.COMPLETED)
