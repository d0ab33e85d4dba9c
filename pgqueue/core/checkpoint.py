"""What a resumable job has done so far, and the rules of steps. Pure: values are JSON text, nothing is sent.

Guarantees: a step's name is used once in an attempt, and steps don't nest; a finished step isn't run again; what a
transaction of the caller's decides is never decided here; what is refused leaves no trace, so that the outcome of the
attempt can always be stored.
Never: concludes anything from the order of steps. A step that isn't recorded as done runs, wherever it stands now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from json import dumps

from pgqueue.errors import StepError

CURSOR_LIMIT = 64 * 1024  # bytes of JSON, as PostgreSQL gets it (UTF-8); the others likewise
RESULT_LIMIT = 256 * 1024
TOTAL_LIMIT = 1024 * 1024

NULL = "null"

_NAME_LIMIT = 128  # characters
_MARKS = len('"":,')  # what an entry of an object has besides its key and its value


@dataclass(slots=True)
class Checkpoint:
    """The steps of one attempt. It keeps the mappings that it is given, and changes them.

    done    finished steps with their results, from this attempt and those before
    cursor  how far steps that aren't finished have come
    data    what the job saved
    """

    done: dict[str, str] = field(default_factory=dict)
    cursor: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set, init=False, repr=False)
    _sizes: dict[tuple[str, str], int] = field(default_factory=dict, init=False, repr=False)  # bytes, also of marks
    _total: int = field(default=0, init=False, repr=False)
    _current: str | None = field(default=None, init=False, repr=False)
    _current_has_cursor: bool = field(default=False, init=False, repr=False)
    _row_decides: bool = field(default=False, init=False, repr=False)  # a *_tx call was made in the running step
    _marked: str | None = field(default=None, init=False, repr=False)  # the result that set_step_tx gave it
    _cursor_verb: str | None = field(default=None, init=False, repr=False)  # what has set the running step's cursor
    _new_done: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _new_cursor: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _new_data: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, part in (("done", self.done), ("cursor", self.cursor), ("data", self.data)):
            self._sizes |= {(name, key): _entry_size(key, value) for key, value in part.items()}
        self._total = sum(self._sizes.values())

    @property
    def current(self) -> str | None:
        """The step that is running."""
        return self._current

    def current_step(self, verb: str) -> str:
        """The name of the running step, for a call that belongs into one.

        raises  StepError outside a step
        """
        if self._current is None:
            raise StepError(f"{verb} outside a step: call it inside the function of a step")
        return self._current

    def cursor_step(self, verb: str) -> str:
        """The name of the running step, for a call that sets its cursor.

        raises  StepError outside a cursor step, or after a call that sets the cursor in the other way
        """
        if self._current is None or not self._current_has_cursor:
            where = "outside a step" if self._current is None else f"in step {self._current!r}, which has no cursor"
            raise StepError(f"{verb} {where}: call it inside the function of a step_cursor")
        if self._cursor_verb not in (None, verb):
            raise StepError(f"step {self._current!r}: {verb} after {self._cursor_verb}; use one of them in a step")
        return self._current

    @property
    def row_decides(self) -> bool:
        """A *_tx call was made in the running step: what its function returns doesn't matter."""
        return self._row_decides

    @property
    def marked(self) -> str | None:
        """The result that set_step_tx gave the running step; None if it wasn't called."""
        return self._marked

    def enter(self, name: str, *, has_cursor: bool = False) -> bool:
        """Begin a step; False: it was finished before, and its function isn't to be run.

        raises  StepError for a name used twice, or inside another step
        """
        name = _check_name(name)
        if self._current is not None:
            raise StepError(
                f"step {name!r} inside step {self._current!r}: steps can neither be nested nor run at the same time;"
                " run one after the other, and close a loop of resume() that was left by break"
            )
        if name in self._seen:
            raise StepError(f"step {name!r}: there was a step of that name in this attempt already; give each its own")
        self._seen.add(name)
        if name in self.done:
            return False
        if self._total > TOTAL_LIMIT:  # by marks; or as PostgreSQL writes its numbers, without exponents
            raise self._too_large(f"step {name!r}: before it", self._total)
        self._current, self._current_has_cursor = name, has_cursor
        self._row_decides, self._cursor_verb, self._marked = False, None, None
        return True

    def leave(self, result: str | None) -> None:
        """The running step has ended: with a result, or (None) without success. Does nothing if no step is running.

        After a *_tx call the result isn't recorded: the step is done if set_step_tx was committed, else it runs again,
        from the last cursor that was.
        raises  StepError for a result over the limit: the step has ended all the same, and isn't done
        """
        name, self._current = self._current, None
        if result is None or name is None or self._row_decides:
            return
        check_size(f"step {name!r}: its result", result, RESULT_LIMIT)
        self._grow(f"step {name!r}: with its result", {("done", name): _entry_size(name, result), ("cursor", name): 0})
        self.done[name] = self._new_done[name] = result
        self.cursor.pop(name, None)
        self._new_cursor.pop(name, None)

    def set_cursor(self, value: str) -> None:
        """The running step has come so far.

        raises  StepError outside a cursor step, after set_step_cursor_tx, or for a value over the limit
        """
        name = self.cursor_step("set_cursor")
        check_size(f"step {name!r}: its cursor", value, CURSOR_LIMIT)
        self._grow(f"step {name!r}: with its cursor", {("cursor", name): _entry_size(name, value)})
        self._cursor_verb = "set_cursor"
        self.cursor[name] = self._new_cursor[name] = value

    def done_in_tx(self, result: str) -> str:
        """The name of the running step: a row in the caller's transaction decides whether it is done.

        raises  StepError outside a step, or for a result over the limit
        """
        name = self.current_step("set_step_tx")
        check_size(f"step {name!r}: its result", result, RESULT_LIMIT)
        self._grow(f"step {name!r}: with its result", {("done", name): _entry_size(name, result)})
        self._row_decides, self._marked = True, result
        return name

    def cursor_in_tx(self, value: str) -> str:
        """The name of the running step: a row in the caller's transaction decides how far it has come.

        raises  StepError outside a cursor step, after set_cursor, or for a value over the limit
        """
        name = self.cursor_step("set_step_cursor_tx")
        check_size(f"step {name!r}: its cursor", value, CURSOR_LIMIT)
        self._grow(f"step {name!r}: with its cursor", {("cursor", name): _entry_size(name, value)})
        self._cursor_verb = "set_step_cursor_tx"
        self._row_decides = True
        return name

    def save(self, changes: Mapping[str, str]) -> None:
        """Add to the data, all of it or nothing; a value of JSON null deletes its key.

        raises  StepError for a key that can't be stored or has over 128 characters, or data over the limit
        """
        sizes: dict[tuple[str, str], int] = {}
        for key, value in changes.items():
            if len(key) > _NAME_LIMIT:
                raise StepError(f"save: the key {key!r:.140} has over {_NAME_LIMIT} characters")
            if not _is_storable(key):
                raise StepError(f"save: PostgreSQL can't store the key {key!r:.140}; take NUL and half surrogates out")
            sizes["data", key] = 0 if value == NULL else _entry_size(key, value)
        self._grow(f"save: with {', '.join(map(repr, changes)):.140}", sizes)
        for key, value in changes.items():
            self._new_data[key] = value
            if value == NULL:
                self.data.pop(key, None)
            else:
                self.data[key] = value

    @property
    def is_changed(self) -> bool:
        """Is there anything that the job's row doesn't have yet?"""
        return bool(self._new_done or self._new_cursor or self._new_data)

    def patch(self) -> str:
        """What this attempt adds, as a JSON object `{"done": {}, "cursor": {}, "data": {}}`; null in data deletes."""
        # Copies, since the job's thread may be adding to them while another asks; in this order, since a step that ends
        # meanwhile goes from the cursors to those that are done.
        cursor, done, data = self._new_cursor.copy(), self._new_done.copy(), self._new_data.copy()
        return f'{{"done":{_object(done)},"cursor":{_object(cursor)},"data":{_object(data)}}}'

    def _grow(self, what: str, sizes: Mapping[tuple[str, str], int]) -> None:
        """Count entries, by part and key, with so many bytes as they are to have."""
        growth = 0
        for key, size in sizes.items():
            growth += size - self._sizes.get(key, 0)
        if growth > 0 and self._total + growth > TOTAL_LIMIT:  # a change that makes it smaller is always welcome
            raise self._too_large(what, self._total + growth)
        self._sizes.update(sizes)
        self._total += growth

    def _too_large(self, what: str, size: int) -> StepError:
        return StepError(
            f"{what} the checkpoint would have {size} bytes of JSON, the limit is {TOTAL_LIMIT};"
            " keep the data in a table and its key here"
        )


def check_size(what: str, text: str, limit: int) -> None:
    """Raise StepError if `text` is over `limit` bytes."""
    size = _bytes(text)
    if size > limit:
        raise StepError(
            f"{what}: {size} bytes of JSON, the limit is {limit}; keep the data in a table and its key here"
        )


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= _NAME_LIMIT:
        raise StepError(f"step {name!r:.140}: a step needs a name of 1 to {_NAME_LIMIT} characters")
    name = str.__str__(name)  # a driver may store an Enum's member under another name
    if not _is_storable(name):
        raise StepError(f"step {name!r}: PostgreSQL can't store this name; take NUL and half surrogate pairs out")
    return name


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _entry_size(key: str, value: str) -> int:
    return _bytes(key) + _bytes(value) + _MARKS


def _is_storable(text: str) -> bool:
    return "\0" not in text and (text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text))


def _object(values: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{dumps(key, ensure_ascii=False)}:{value}" for key, value in values.items()) + "}"
