"""The state machine of a rollout: whatever happens, clients keep workers, and it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from supervisor.rollout import Action, Phase, Rollout, Sight

BOOT_S, DRAIN_S = 60.0, 20.0


def at(phase: Phase = Phase.STARTING) -> Rollout:
    return Rollout(0.0, BOOT_S, DRAIN_S, phase)


def test_old_processes_drain_when_all_new_ones_are_ready() -> None:
    waiting, nothing = at().advance(Sight(1.0, new_ready=False, old_alive=3))
    assert (waiting.phase, nothing) == (Phase.STARTING, None)
    draining, action = waiting.advance(Sight(2.0, new_ready=True, old_alive=3))
    assert (draining.phase, action) == (Phase.DRAINING, Action.DRAIN_OLD)
    same, nothing = draining.advance(Sight(3.0, new_ready=True, old_alive=1))
    assert (same, nothing) == (draining, None)
    done, nothing = draining.advance(Sight(4.0, new_ready=True))
    assert (done.phase, done.killed, nothing) == (Phase.DONE, False, None)


def test_a_failed_or_slow_new_process_leaves_the_old_ones() -> None:
    failed, action = at().advance(Sight(1.0, new_ready=False, failure="ws/2 died", old_alive=2))
    assert (failed.phase, failed.failure, action) == (Phase.FAILED, "ws/2 died", Action.KILL_NEW)
    slow, action = at().advance(Sight(BOOT_S, new_ready=False, old_alive=2))
    assert (slow.phase, action) == (Phase.FAILED, Action.KILL_NEW)
    assert "60 s" in (slow.failure or "")


def test_old_processes_that_do_not_end_are_killed_once() -> None:
    draining, _ = at().advance(Sight(1.0, new_ready=True, old_alive=1))
    killing, action = draining.advance(Sight(1.0 + DRAIN_S, new_ready=True, old_alive=1))
    assert (killing.killed, action) == (True, Action.KILL_OLD)
    assert killing.advance(Sight(2.0 + DRAIN_S, new_ready=True, old_alive=1)) == (killing, None)


def test_it_waits_for_successors_but_not_for_ever() -> None:
    draining, _ = at().advance(Sight(0.0, new_ready=True, old_alive=1))
    late = Sight(5.0, new_ready=True, successors_ready=False)
    assert draining.advance(late) == (draining, None)
    gone = Sight(DRAIN_S + BOOT_S, new_ready=True, successors_ready=False)
    assert draining.advance(gone)[0].phase is Phase.DONE


@dataclass
class World:
    """Two old processes, two new ones, one exclusive process, and what kills and starts them."""

    now_s: float = 0.0
    old: set[int] = field(default_factory=lambda: {1, 2})
    new: set[int] = field(default_factory=set)
    new_ready: set[int] = field(default_factory=set)
    exclusive_alive: bool = True
    exclusive_is_new: bool = False
    is_draining: bool = False
    deaths: int = 0
    has_failed: bool = False

    def sight(self) -> Sight:
        is_changing = self.is_draining and self.exclusive_alive and not self.exclusive_is_new
        return Sight(
            self.now_s, self.new_ready == {3, 4}, "it died" if self.deaths >= 3 else None,
            (len(self.old) if self.is_draining else 0) + is_changing,
            self.exclusive_alive and self.exclusive_is_new,
        )

    def happen(self, event: str) -> None:
        """One thing that the supervisor or the world does to the processes."""
        match event:
            case "start new":
                self.new = set() if self.has_failed else {3, 4}
            case "new ready":
                self.new_ready = set(self.new)
            case "kill new":
                self.new.discard(3)
                self.new_ready.discard(3)
                self.deaths += not self.is_draining
            case "kill old":  # is started again, unless it drains
                self.old -= {1} if self.is_draining else set()
            case "old ends":
                self.old = set() if self.is_draining else self.old
            case "exclusive ends":
                if self.is_draining and not self.exclusive_is_new:
                    self.exclusive_alive = False
            case "exclusive starts":
                if not self.exclusive_alive:
                    self.exclusive_alive = self.exclusive_is_new = True
            case "time":
                self.now_s += 7.0

    def carry_out(self, action: Action | None) -> None:
        match action:
            case Action.DRAIN_OLD:
                assert self.new_ready == {3, 4}, "nobody would serve"
                self.is_draining = True
            case Action.KILL_OLD:
                assert self.is_draining
                self.old = set()
                self.exclusive_alive = self.exclusive_is_new
            case Action.KILL_NEW:
                assert not self.is_draining, "the old ones are going already"
                self.new, self.new_ready, self.has_failed = set(), set(), True


EVENTS = ("start new", "new ready", "kill new", "kill old", "old ends", "exclusive ends",
          "exclusive starts", "time")


@given(st.lists(st.sampled_from(EVENTS), max_size=60))
def test_some_workers_always_serve_and_it_ends(events: list[str]) -> None:
    world, rollout = World(), at()
    for event in (*events, *["time"] * 30):
        world.happen(event)
        before = rollout
        rollout, action = rollout.advance(world.sight())
        world.carry_out(action)
        if before.has_ended:
            assert (rollout, action) == (before, None), "it does nothing more"
        if rollout.phase in (Phase.STARTING, Phase.FAILED):
            assert world.old == {1, 2}, "the workers from before serve on"
        if rollout.phase is Phase.FAILED:
            assert not world.new
        if rollout.phase is Phase.DONE:
            assert not world.old
    assert rollout.has_ended
    assert (rollout.phase is Phase.DONE) == world.is_draining
