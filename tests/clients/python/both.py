"""One text of a test for both clients: the blocking one and the asyncio one.

A test is an async function that takes a `Client`. It writes ``await got(call)`` where the clients
differ by `await`, ``each(...)`` for iterators and ``entered(...)`` for context managers. With the
blocking client nothing is awaited really; its calls block the loop, which has nothing else to do.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pylon_client import AsyncPylon, Pylon

Client = Any  # Pylon or AsyncPylon
MAKERS: dict[str, Callable[..., Client]] = {"sync": Pylon, "async": AsyncPylon}
STEP_S = 30.0  # how long a step may take; a test that waits so long has failed


async def got(value: Any) -> Any:
    """Return the result of a call of either client."""
    return await value if inspect.isawaitable(value) else value


async def each(items: Any) -> AsyncIterator[Any]:
    """Iterate over what either client iterates over."""
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def first_of(items: Any, count: int) -> list[Any]:
    """Return the first items, and close the iterator."""
    found = []
    iterator = aiter(items) if hasattr(items, "__aiter__") else iter(items)
    while len(found) < count:
        found.append(await anext(iterator) if hasattr(iterator, "__anext__") else next(iterator))
    close = getattr(iterator, "aclose", None) or getattr(iterator, "close", None)
    if close is not None:
        await got(close())
    return found


class Steps:
    """An iterator of either client, a step at a time."""

    def __init__(self, items: Any) -> None:
        self._iterator = aiter(items) if hasattr(items, "__aiter__") else iter(items)

    async def next(self) -> Any:
        if hasattr(self._iterator, "__anext__"):
            return await anext(self._iterator)
        return next(self._iterator)

    async def close(self) -> None:
        iterator = self._iterator
        await got((getattr(iterator, "aclose", None) or iterator.close)())


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """Enter the context manager of either client."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


def both(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test once for each client. Its first argument makes clients by their URL."""

    @functools.wraps(test)
    def run(kind: str, **fixtures: Any) -> None:
        asyncio.run(test(MAKERS[kind], **fixtures))

    signature = inspect.signature(test)
    _, *others = signature.parameters.values()
    kind = inspect.Parameter("kind", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = signature.replace(parameters=[kind, *others])  # type: ignore[attr-defined]
    return pytest.mark.parametrize("kind", [*MAKERS])(run)
