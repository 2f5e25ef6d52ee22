"""The queue of password hashes: bounded, in order, and without a word about passwords."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from pylon import metrics
from pylon.errors import Unavailable
from workers.identity.hashing import HashPool, hash_threads

Make = Callable[..., HashPool]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[HashPool] = []

    def pool(threads: int = 1, **settings: Any) -> HashPool:
        made.append(HashPool(threads, **{"memory_kib": 64, **settings}))
        return made[-1]

    yield pool
    for each in made:
        each.close()


def count(result: str) -> float:
    value: float = metrics.PASSWORD_HASHES.labels(result)._value.get()
    return value


def test_a_hash_has_the_parameters_of_owasp_and_is_of_its_password_only() -> None:
    pool = HashPool(1)
    phc = pool.make(b"correct horse")
    assert phc.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert pool.verify(phc, b"correct horse")
    assert not pool.verify(phc, b"correct horse ")
    assert not pool.verify("$argon2id$broken", b"correct horse")
    assert pool.make(b"correct horse") != phc
    assert not pool.is_outdated(phc)
    pool.close()


def test_a_hash_of_other_parameters_is_outdated(make: Make) -> None:
    phc = make(memory_kib=128).make(b"x")
    assert make(memory_kib=64).verify(phc, b"x")
    assert make(memory_kib=64).is_outdated(phc)
    assert make().is_outdated("no hash")


def test_the_event_loop_goes_on_while_a_hash_is_made() -> None:
    pool, turns = HashPool(1), 0
    job = gevent.spawn(pool.make, b"x")
    while not job.ready():
        gevent.sleep(0.001)
        turns += 1
    pool.close()
    assert turns >= 3


@contextmanager
def all_threads_taken(pool: HashPool) -> Iterator[None]:
    """Let no hash begin meanwhile."""
    pool._free.acquire()
    try:
        yield
    finally:
        pool._free.release()


def test_a_full_queue_refuses_at_once_and_the_others_are_served(make: Make) -> None:
    pool = make(1, waiting=2)
    refused = count("refused")
    with all_threads_taken(pool):
        waiting = [gevent.spawn(pool.make, b"x") for _ in range(2)]
        gevent.sleep(0)
        with pytest.raises(Unavailable, match="limit 2") as caught:
            pool.make(b"secret words")
        assert caught.value.retry_after_s == 1
        assert "secret" not in repr(caught.value.body())
        assert not any(job.ready() for job in waiting)
    gevent.joinall(waiting, timeout=10, raise_error=True)
    assert all(job.value.startswith("$argon2id$") for job in waiting)
    assert count("refused") == refused + 1


def test_a_hash_that_waited_too_long_is_dropped(make: Make) -> None:
    pool = make(1, wait_s=0.01)
    late = count("late")
    with all_threads_taken(pool), pytest.raises(Unavailable, match="waited longer than"):
        pool.make(b"x")
    assert count("late") == late + 1
    assert pool.make(b"x")  # the thread is free again


def test_hashes_are_made_in_the_order_of_their_requests(make: Make) -> None:
    pool = make(1)
    order: list[int] = []

    def hash_(number: int) -> None:
        pool.make(b"x")
        order.append(number)

    with all_threads_taken(pool):
        jobs = [gevent.spawn(hash_, number) for number in range(5)]
        gevent.sleep(0)
    gevent.joinall(jobs, timeout=10, raise_error=True)
    assert order == [0, 1, 2, 3, 4]


def test_the_number_of_threads_is_half_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (2, 1), (8, 4), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert hash_threads(0) == expected
    assert hash_threads(3) == 3
