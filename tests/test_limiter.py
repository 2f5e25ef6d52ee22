"""pylon.limiter: one budget for all processes, exact, with memory that does not grow."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon import metrics
from pylon.auth.forwarded import network_of
from pylon.clock import ManualClock, SystemClock
from pylon.errors import RateLimited
from pylon.limiter import RateLimiter, RateTable, Take
from pylon.rates import Rate, address_subject, user_subject
from tests.support.measured import total

TEN_A_MINUTE = Rate("test", 10, 60.0)
ROOT = Path(__file__).parent.parent

TAKER = """
import sys
from pathlib import Path
from pylon import metrics
from pylon.clock import SystemClock
from pylon.limiter import RateLimiter, RateTable
from pylon.rates import Rate
limiter = RateLimiter(RateTable(Path(sys.argv[1])), SystemClock())
rate = Rate("shared", 1_000, 1e9)
print("ready", flush=True)
sys.stdin.readline()
allowed = sum(limiter.take(rate, "ip:192.0.2.1") == 0 for _ in range(1_000))
[skipped] = metrics.RATE_SKIPPED.collect()[0].samples[:1]
print(allowed - int(skipped.value))  # skipped takes were not spent
"""

PAIR_TAKER = """
import sys
from pathlib import Path
from pylon import metrics
from pylon.clock import SystemClock
from pylon.errors import RateLimited
from pylon.limiter import RateLimiter, RateTable, Take
from pylon.rates import Rate
limiter = RateLimiter(RateTable(Path(sys.argv[1])), SystemClock())
wide, tight = Rate("wide", 1_000, 1e9), Rate("tight", 500, 1e9)
pair = [Take(rate, limiter.key(rate, "user:a")) for rate in (wide, tight)]
if sys.argv[2] == "1":
    pair.reverse()
print("ready", flush=True)
sys.stdin.readline()
allowed = 0
for _ in range(1_000):
    try:
        limiter.require_all(pair)
    except RateLimited:
        continue
    allowed += 1
[skipped] = metrics.RATE_SKIPPED.collect()[0].samples[:1]
print(allowed, int(skipped.value))
"""


def limiter_at(clock: ManualClock) -> RateLimiter:
    return RateLimiter(RateTable(), clock)


def test_nodes_count_what_the_others_have_allowed(tmp_path: Path) -> None:
    clock = ManualClock()
    salt = b"the salt of all."
    nodes = [
        RateLimiter(RateTable(tmp_path / name, salt), clock, is_shared=True) for name in "ab"
    ]
    tables = [RateTable(tmp_path / name) for name in "ab"]
    assert all(table.salt == salt for table in tables)
    allowed = 0
    for _ in range(600):  # ten a second for a minute, on each node
        clock.advance(0.1)
        allowed += sum(node.take(TEN_A_MINUTE, "ip:1") == 0.0 for node in nodes)
        if round(clock.monotonic_s() * 10) % 10 == 0:  # once a second
            spent = [node.take_spent() for node in nodes]
            for table, told in zip(tables, reversed(spent), strict=True):
                for key, units_s in told:
                    table.add(key, units_s, clock.monotonic_s())
    assert 18 <= allowed <= 32, "ten at once on each, and ten a minute for both together"
    assert nodes[0].take_spent() == []
    assert limiter_at(clock).take_spent() == []


def test_a_burst_is_allowed_and_then_one_unit_each_interval() -> None:
    clock = ManualClock()
    limiter = limiter_at(clock)
    assert [limiter.take(TEN_A_MINUTE, "a") for _ in range(10)] == [0.0] * 10
    assert limiter.take(TEN_A_MINUTE, "a") == pytest.approx(6.0)
    clock.advance(6.0)
    assert limiter.take(TEN_A_MINUTE, "a") == 0.0
    assert limiter.take(TEN_A_MINUTE, "a") > 0


def test_subjects_and_rates_do_not_share_a_budget() -> None:
    limiter = limiter_at(ManualClock())
    for subject in (user_subject("a"), address_subject("a")):
        for rate in (TEN_A_MINUTE, Rate("other", 10, 60.0)):
            assert limiter.take(rate, subject, units=10) == 0.0
            assert limiter.take(rate, subject) > 0


def test_a_refusal_says_when_to_come_again_and_is_counted() -> None:
    limiter = limiter_at(ManualClock())
    limiter.require(TEN_A_MINUTE, "a", units=10)
    refused = total(metrics.RATE_LIMITED, rate="test")
    with pytest.raises(RateLimited) as caught:
        limiter.require(TEN_A_MINUTE, "a")
    assert caught.value.body()["error"]["retry_after_secs"] == 6
    assert caught.value.retry_after_s == 6
    assert total(metrics.RATE_LIMITED, rate="test") == refused + 1


def test_what_is_charged_afterwards_is_owed_and_looking_spends_nothing() -> None:
    clock = ManualClock()
    limiter = RateLimiter(RateTable(), clock)
    for _ in range(100):
        assert limiter.wait_s(TEN_A_MINUTE, "user:a") == 0.0
    assert limiter.charge(TEN_A_MINUTE, "user:a", 9) == 0.0
    assert limiter.charge(TEN_A_MINUTE, "user:a", 11) == pytest.approx(66.0, abs=0.1)
    assert limiter.wait_s(TEN_A_MINUTE, "user:a") == pytest.approx(66.0, abs=0.1)
    assert limiter.take(TEN_A_MINUTE, "user:a") > 0
    assert limiter.wait_s(TEN_A_MINUTE, "user:b") == 0.0
    clock.advance(66.1)
    assert limiter.wait_s(TEN_A_MINUTE, "user:a") == 0.0
    assert limiter.charge(TEN_A_MINUTE, "user:a", 1e9) <= 11 * 60.0, "the debt has a bound"
    assert limiter.charge(Rate("off", 0, 60.0), "user:a") == 0.0


def test_a_limit_of_zero_allows_everything() -> None:
    limiter = limiter_at(ManualClock())
    assert all(limiter.take(Rate("off", 0, 60.0), "a") == 0.0 for _ in range(1_000))


@given(st.lists(st.floats(0, 30), max_size=60))
def test_no_window_ever_has_more_than_twice_the_limit(pauses: list[float]) -> None:
    clock = ManualClock()
    limiter = limiter_at(clock)
    allowed_at: list[float] = []
    for pause in pauses:
        clock.advance(pause)
        if limiter.take(TEN_A_MINUTE, "a") == 0.0:
            allowed_at.append(clock.monotonic_s())
    for begin in allowed_at:
        # A full bucket and what comes back during the window.
        assert sum(begin <= at < begin + 60 for at in allowed_at) <= 20


def test_many_subjects_cost_no_memory_and_a_full_bucket_gives_up_the_fullest_budget() -> None:
    limiter = limiter_at(ManualClock())
    before = total(metrics.RATE_EVICTED)
    for number in range(100_000):
        assert limiter.take(TEN_A_MINUTE, f"ip:{number}") == 0.0
    assert total(metrics.RATE_EVICTED) > before


WIDE, TIGHT = Rate("wide", 1_000, 1e9), Rate("tight", 500, 1e9)


def spent(table: RateTable, limiter: RateLimiter, rate: Rate, subject: str, now_s: float) -> int:
    return round(table.ahead_s(limiter.key(rate, subject), now_s) / rate.interval_s)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_several_rates_are_spent_together_or_not_at_all(order: tuple[int, int]) -> None:
    clock, table = ManualClock(), RateTable()
    limiter = RateLimiter(table, clock)
    wide, tight = Rate("wide", 100, 60.0), Rate("tight", 10, 60.0)
    pair = [Take(wide, limiter.key(wide, "a"), 3), Take(tight, limiter.key(tight, "a"), 4)]
    takes = [pair[number] for number in order]
    assert sorted(limiter.require_all(takes)) == pytest.approx([-58.2, -36.0])
    limiter.require_all(takes)
    refused = total(metrics.RATE_LIMITED, rate="tight")
    for _ in range(5):
        with pytest.raises(RateLimited, match="tight") as caught:
            limiter.require_all(takes)
        assert caught.value.retry_after_s == 12
    assert total(metrics.RATE_LIMITED, rate="tight") == refused + 5
    now_s = clock.monotonic_s()
    assert [spent(table, limiter, rate, "a", now_s) for rate in (wide, tight)] == [6, 8]
    clock.advance(12.0)
    limiter.require_all(takes)


def test_new_keys_of_one_bucket_are_all_remembered() -> None:
    table = RateTable()
    keys = [1 + number * 8_192 for number in range(8)]  # as many as a bucket has cells
    assert table.take_all([(key, 2.0, 10.0) for key in keys], 5.0) == [-8.0] * 8
    assert [table.ahead_s(key, 5.0) for key in keys] == [2.0] * 8


def test_other_nodes_learn_of_all_rates_that_were_spent_together() -> None:
    clock = ManualClock()
    limiter = RateLimiter(RateTable(), clock, is_shared=True)
    takes = [Take(rate, limiter.key(rate, "a"), 400) for rate in (WIDE, TIGHT)]
    limiter.require_all(takes)
    with pytest.raises(RateLimited):
        limiter.require_all(takes)
    assert dict(limiter.take_spent()) == {
        takes[0].key: pytest.approx(400e6), takes[1].key: pytest.approx(800e6)
    }


@pytest.mark.usefixtures("processes")
def test_processes_spend_two_rates_together_exactly(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR_TAKER, str(path), str(number % 2)], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]
    for taker in takers:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "ready\n"
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    counts = [tuple(map(int, taker.communicate(timeout=60)[0].split())) for taker in takers]
    allowed, skipped = (sum(column) for column in zip(*counts, strict=True))
    table, clock = RateTable(path), SystemClock()
    limiter = RateLimiter(table, clock)
    wide, tight = (
        spent(table, limiter, rate, "user:a", clock.monotonic_s()) for rate in (WIDE, TIGHT)
    )
    assert tight == 500
    # A take that passes a stuck bucket spends nothing there.
    assert allowed - skipped <= wide <= allowed, "a refused request spent nothing"


@pytest.mark.usefixtures("processes")
def test_processes_share_one_budget_exactly(tmp_path: Path) -> None:
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, str(tmp_path / "rates")], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]
    for taker in takers:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "ready\n"
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    assert sum(int(taker.communicate(timeout=60)[0]) for taker in takers) == 1_000


@pytest.mark.usefixtures("processes")
def test_a_bucket_that_a_stopped_process_holds_lets_takes_through(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    limiter = RateLimiter(RateTable(path), ManualClock())
    held, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        with path.open("r+b") as table:
            fcntl.lockf(table, fcntl.LOCK_EX)
            os.write(release, b"x")
            os.read(os.pipe()[0], 1)
    try:
        os.read(held, 1)
        before = total(metrics.RATE_SKIPPED)
        assert [limiter.take(TEN_A_MINUTE, "a") for _ in range(20)] == [0.0] * 20
        assert total(metrics.RATE_SKIPPED) == before + 20
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("unix", "unix"),
    ],
)
def test_an_ipv6_client_is_counted_by_its_64(address: str, network: str) -> None:
    assert network_of(address) == network
