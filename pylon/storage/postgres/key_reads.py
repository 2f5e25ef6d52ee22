"""Key reads: the reads of rows by their ids, and how those of one turn become one statement.

A key read has a `KeyStatement`: the SELECT of one row, and the SELECT of many rows by an array of
keys. `pipe` gathers the reads of one turn of the event loop in a `KeyGroup` and sends one statement
for all of them. PERF: `bench/results/2026-11-28/postgres-key-reads.md`.

Invariants: each read gets its own row, or None. Only reads whose other parameters are equal as they
are sent share a group, so `1` and `true` do not. A group's statement that fails is no answer to its
reads: the pipe asks each of them alone then. Bound: `limits.KEY_READS_OF_STATEMENT` keys in one
statement. Called by `pipe`, `wire` and `reads`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from psycopg.pq.abc import PGresult

from pylon import limits
from pylon.storage.postgres.parameters import EncodedParameters, encode_array
from pylon.storage.postgres.pending_statements import PendingStatement, PipeRefused, TextMemory

Row: TypeAlias = tuple[bytes | None, ...]

_MIN_KEYS: Final = 3  # PERF: 2 keys in one statement cost the worker 1.3 us more than 2 statements


@dataclass(frozen=True, slots=True)
class KeyStatement:
    """A SELECT of rows by a unique key, in two forms with the same other parameters."""

    one: str  # `$1` is the key
    many: str  # `$1` is an array of keys, and the first column is the key


def row_of(result: PGresult, number: int = 0, first_column: int = 0) -> Row | None:
    """Return a row of a result, or None if it has fewer rows."""
    if number >= result.ntuples:
        return None
    value = result.get_value
    return tuple([value(number, column) for column in range(first_column, result.nfields)])


class KeyRead:
    """The read of one greenlet. `waiter` is called once, when `row` or `error` is there."""

    __slots__ = ("error", "key", "row", "waiter")

    def __init__(self, key: bytes, waiter: Callable[[], object]) -> None:
        self.key = key
        self.row: Row | None = None
        self.error: Exception | None = None
        self.waiter: Callable[[], object] | None = waiter

    def finish(self, row: Row | None, error: Exception | None = None) -> None:
        """Give the greenlet its row or its error; it runs at once."""
        self.row, self.error = row, error
        waiter, self.waiter = self.waiter, None
        if waiter is not None:  # else the greenlet was killed
            waiter()


class KeyGroup:
    """The reads of one turn with the same statement and the same other parameters."""

    __slots__ = ("parameters", "reads", "statement")

    def __init__(self, statement: KeyStatement, parameters: Sequence[bytes | None]) -> None:
        """Args: `parameters` are those behind the key, as texts of libpq."""
        self.statement = statement
        self.parameters = parameters
        self.reads: list[KeyRead] = []

    def parts(self, size: int) -> list[KeyGroup]:
        """Return groups of at most `size` reads. Few reads are groups of one."""
        if len(self.reads) < _MIN_KEYS:
            size = 1
        elif len(self.reads) <= size:
            return [self]
        found = []
        for begin in range(0, len(self.reads), size):
            part = KeyGroup(self.statement, self.parameters)
            part.reads = self.reads[begin:begin + size]
            found.append(part)
        return found

    def question(self) -> tuple[str, EncodedParameters]:
        """Return the statement and its parameters."""
        if len(self.reads) == 1:
            return self.statement.one, EncodedParameters([self.reads[0].key, *self.parameters])
        keys = encode_array(list({read.key: None for read in self.reads}))
        return self.statement.many, EncodedParameters([keys, *self.parameters])

    def give_rows(self, result: PGresult) -> None:
        """Give each read its row of the statement's result."""
        if len(self.reads) == 1:
            self.reads[0].finish(row_of(result))
            return
        rows = {result.get_value(n, 0): row_of(result, n, 1) for n in range(result.ntuples)}
        for read in self.reads:
            read.finish(rows.get(read.key))

    def give_error(self, error: Exception) -> None:
        """Give all reads one error."""
        for read in self.reads:
            read.finish(None, error)


class KeyReads:
    """The key reads of a pipe: those of this turn, and those whose statement is under way."""

    __slots__ = ("_ask_again", "_group_by_name", "_texts")

    def __init__(
        self, texts: TextMemory, ask_again: Callable[[Sequence[PendingStatement]], bool]
    ) -> None:
        """
        Args:
            ask_again: sends questions; returns False if there is no connection.
        """
        self._texts = texts
        self._ask_again = ask_again
        # By the statement and the parameters behind its key, as they are sent.
        self._group_by_name: dict[tuple[str, tuple[bytes | None, ...]], KeyGroup] = {}

    def add(
        self, statement: KeyStatement, values: Sequence[bytes | None],
        waiter: Callable[[], object],
    ) -> KeyRead:
        """Add a read to those of this turn.

        Args:
            values: the key and the other parameters, as texts of libpq.
        """
        name = statement.one, tuple(values[1:])
        group = self._group_by_name.get(name)
        if group is None:
            group = self._group_by_name[name] = KeyGroup(statement, name[1])
        read = KeyRead(values[0] or b"", waiter)
        group.reads.append(read)
        return read

    def take_questions(self) -> list[PendingStatement]:
        """Return the questions of this turn. A text that ran into the limit goes alone."""
        groups, self._group_by_name = self._group_by_name, {}
        questions = []
        for group in groups.values():
            is_slow = self._texts.is_slow(group.statement.many)
            for part in group.parts(1 if is_slow else limits.KEY_READS_OF_STATEMENT):
                questions.append(self._question(part))
        return questions

    def _question(self, group: KeyGroup) -> PendingStatement:
        question = PendingStatement(*group.question(), len(group.reads))
        question.waiter = partial(self._answer, group)
        return question

    def _answer(self, group: KeyGroup, question: PendingStatement) -> None:
        """Give the reads of a group their rows, or ask each alone."""
        error = question.error
        if error is None:
            assert question.result is not None
            group.give_rows(question.result)
        elif len(group.reads) == 1 or isinstance(error, PipeRefused):
            group.give_error(error)
        else:  # the row of one read may have caused it
            questions = [self._question(part) for part in group.parts(1)]
            if not self._ask_again(questions):
                group.give_error(error)
