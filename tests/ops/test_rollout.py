"""Rollouts: single steps by hand, then a state machine that checks the laws in any order of events."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ops.adapters import LIVE, TRANSITIONS, Adapter, AdapterState
from ops.config import Rollout
from ops.errors import TransitionRefused, UnknownAdapter
from ops.rollout import CanaryCounts, Plan, count, plan, promotion, rollback, to_unload
from ops.traffic import TrafficTable
from tests.ops.reports import GOOD as REPORT

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROLLOUT = Rollout(canary_steps=[0.1, 0.5], step_s=10.0, step_turns=20, max_error_rate=0.02)
S = AdapterState


def adapter(name: str, state: AdapterState, **more: object) -> Adapter:
    made = Adapter(
        name=name,
        sha256=name[-8:] * 8,
        path=f"/adapters/{name}",
        base_sha256="b" * 64,
        run_id="base" if name.startswith("base") else "run",
        state=state,
        created_at=NOW,
        changed_at=NOW,
    )
    return msgspec.structs.replace(made, **more)


BASE = adapter("base-00000000", S.STABLE)
NEW = adapter("run-11111111", S.LOADED)
READY = frozenset({BASE.name, NEW.name})
NONE_SEEN = CanaryCounts()
ALONE = TrafficTable(revision=1, stable=BASE.name, changed_at=NOW)
TENTH = TrafficTable(
    revision=2, stable=BASE.name, canary=NEW.name, canary_fraction=0.1, salt=NEW.name, changed_at=NOW
)
CANARY = [BASE, adapter(NEW.name, S.CANARY)]


def counted(turns: int, failed: int = 0, revision: int = 2) -> CanaryCounts:
    return CanaryCounts(adapter=NEW.name, revision=revision, turns=turns, failed=failed, step_turns=turns)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def step(
    adapters: list[Adapter],
    table: TrafficTable | None,
    counts: CanaryCounts = NONE_SEEN,
    *,
    seconds: float = 0.0,
    ready: frozenset[str] = READY,
    rollout: Rollout = ROLLOUT,
) -> Plan:
    found = plan(adapters, table, ready, counts, rollout, after(seconds))
    assert found is not None
    return found


def moves(found: Plan) -> dict[str, AdapterState]:
    return {c.name: c.to for c in found.changes}


def test_the_base_serves_first() -> None:
    found = step([adapter(BASE.name, S.LOADED)], None)
    assert moves(found) == {BASE.name: S.STABLE}
    assert found.table is not None and found.table.stable == BASE.name


def test_nothing_but_the_base_serves_first() -> None:
    assert plan([NEW], None, READY, CanaryCounts(), ROLLOUT, NOW) is None


def test_evaluated_becomes_loaded_only_when_every_replica_agrees() -> None:
    waiting = [BASE, adapter(NEW.name, S.EVALUATED)]
    assert plan(waiting, ALONE, frozenset({BASE.name}), CanaryCounts(), ROLLOUT, NOW) is None
    assert moves(step(waiting, ALONE)) == {NEW.name: S.LOADED}


def test_a_canary_starts_at_the_first_step() -> None:
    found = step([BASE, NEW], ALONE, seconds=5)
    assert moves(found) == {NEW.name: S.CANARY}
    assert found.table == TrafficTable(
        revision=1,
        stable=BASE.name,
        canary=NEW.name,
        canary_fraction=0.1,
        salt=NEW.name,
        changed_at=after(5),
    )


@pytest.mark.parametrize("turns,seconds", [(19, 60.0), (20, 9.9)])
def test_a_step_takes_both_time_and_turns(turns: int, seconds: float) -> None:
    assert plan(CANARY, TENTH, READY, counted(turns), ROLLOUT, after(seconds)) is None


def test_the_next_step_follows() -> None:
    found = step(CANARY, TENTH, counted(20), seconds=10)
    assert found.changes == ()
    assert found.table is not None and found.table.canary_fraction == 0.5


def test_turns_of_the_step_before_do_not_count() -> None:
    half = msgspec.structs.replace(TENTH, revision=3, canary_fraction=0.5)
    assert plan(CANARY, half, READY, counted(500, revision=2), ROLLOUT, after(60)) is None


def test_the_last_step_promotes() -> None:
    half = msgspec.structs.replace(TENTH, revision=3, canary_fraction=0.5)
    found = step(CANARY, half, counted(20, revision=3), seconds=10)
    assert moves(found) == {NEW.name: S.STABLE, BASE.name: S.SUPERSEDED}
    assert found.table is not None
    assert (found.table.stable, found.table.previous, found.table.canary) == (NEW.name, BASE.name, None)


def test_without_auto_promote_the_last_step_waits_for_a_person() -> None:
    half = msgspec.structs.replace(TENTH, revision=3, canary_fraction=0.5)
    careful = Rollout(auto_promote=False)
    assert plan(CANARY, half, READY, counted(500, revision=3), careful, after(999)) is None
    assert moves(promotion(CANARY, half, NEW.name, NOW, "ok"))[NEW.name] is S.STABLE


def test_a_ramp_holds_while_a_replica_is_without_the_canary() -> None:
    ready = frozenset({BASE.name})
    assert plan(CANARY, TENTH, ready, counted(500), ROLLOUT, after(60)) is None


@pytest.mark.parametrize(
    "turns,failed,away", [(100, 2, False), (20, 2, False), (20, 3, True), (150, 3, False), (149, 3, True)]
)
def test_a_failing_canary_is_rolled_back_at_once(turns: int, failed: int, away: bool) -> None:
    """More than 2 % and at least 3: 3 of 149 is 2.01 %, 3 of 150 exactly 2 %."""
    found = plan(CANARY, TENTH, READY, counted(turns, failed), ROLLOUT, after(1))
    assert (found is not None and moves(found) == {NEW.name: S.ROLLED_BACK}) == away


def test_evidence_against_another_stable_adapter_is_stale() -> None:
    """Two candidates of one parent: once the first is promoted, the second must be measured again."""
    report = msgspec.structs.replace(REPORT, baseline="run-99999999")
    found = step([BASE, adapter(NEW.name, S.LOADED, report=report)], ALONE)
    assert moves(found) == {NEW.name: S.REJECTED}
    fresh = msgspec.structs.replace(REPORT, baseline=BASE.name)
    assert moves(step([BASE, adapter(NEW.name, S.LOADED, report=fresh)], ALONE)) == {NEW.name: S.CANARY}


def test_a_second_candidate_queues() -> None:
    later = adapter("run-22222222", S.LOADED)
    assert plan([*CANARY, later], TENTH, READY | {later.name}, CanaryCounts(), ROLLOUT, NOW) is None


@pytest.mark.parametrize("state", [S.REGISTERED, S.EVALUATED, S.REJECTED, S.ROLLED_BACK, S.RETIRED])
def test_no_evidence_no_promotion(state: AdapterState) -> None:
    """Invariant 5, also for a person in a hurry."""
    with pytest.raises(TransitionRefused):
        promotion([BASE, adapter(NEW.name, state)], ALONE, NEW.name, NOW, "please")


def test_promoting_the_unknown_or_the_stable_is_refused() -> None:
    with pytest.raises(UnknownAdapter):
        promotion([BASE], ALONE, "run-33333333", NOW, "")
    with pytest.raises(TransitionRefused, match="stable already"):
        promotion([BASE], ALONE, BASE.name, NOW, "")


def test_promoting_past_a_running_canary_rolls_that_one_back() -> None:
    later = adapter("run-22222222", S.LOADED)
    found = promotion([*CANARY, later], TENTH, later.name, NOW, "urgent")
    assert moves(found) == {later.name: S.STABLE, BASE.name: S.SUPERSEDED, NEW.name: S.ROLLED_BACK}


def test_rolling_back_takes_the_canary_first_and_then_the_stable_one() -> None:
    assert moves(rollback(CANARY, TENTH, NOW, "")) == {NEW.name: S.ROLLED_BACK}
    adapters = [adapter(BASE.name, S.SUPERSEDED), adapter(NEW.name, S.STABLE)]
    table = TrafficTable(revision=5, stable=NEW.name, previous=BASE.name)
    found = rollback(adapters, table, NOW, "")
    assert moves(found) == {NEW.name: S.ROLLED_BACK, BASE.name: S.STABLE}
    assert found.table is not None and found.table.stable == BASE.name


def test_rolling_back_from_the_base_keeps_it() -> None:
    """An operator promoted the base and takes that back: the base must stay loaded, it is the last resort."""
    adapters = [adapter(BASE.name, S.STABLE), adapter(NEW.name, S.SUPERSEDED)]
    table = TrafficTable(revision=5, stable=BASE.name, previous=NEW.name)
    found = rollback(adapters, table, NOW, "")
    assert moves(found) == {NEW.name: S.STABLE, BASE.name: S.SUPERSEDED}
    assert found.table is not None and found.table.pinnable == (BASE.name,)


def test_behind_the_base_there_is_nothing() -> None:
    with pytest.raises(TransitionRefused, match="nothing behind it"):
        rollback([BASE], ALONE, NOW, "")
    with pytest.raises(TransitionRefused, match="nothing serves yet"):
        rollback([], None, NOW, "")


def test_what_is_over_unloads_after_the_drain() -> None:
    """A gateway may route by a table some hundred milliseconds old."""
    gone = adapter(NEW.name, S.ROLLED_BACK)
    listed = frozenset({NEW.name, BASE.name, "learner-7", "unknown"})
    assert to_unload([BASE, gone], listed, 5.0, after(4.9)) == []
    assert to_unload([BASE, gone], listed, 5.0, after(5.0)) == [NEW.name]


def test_counts_belong_to_one_canary_and_its_step() -> None:
    counts = count(CanaryCounts(), TENTH, NEW.name, failed=True)
    counts = count(counts, TENTH, BASE.name, failed=True)
    assert counts == CanaryCounts(adapter=NEW.name, revision=2, turns=1, failed=1, step_turns=1)
    half = msgspec.structs.replace(TENTH, revision=3, canary_fraction=0.5)
    counts = count(counts, half, NEW.name, failed=False)
    assert counts == CanaryCounts(adapter=NEW.name, revision=3, turns=2, failed=1, step_turns=1)


class Rollouts(RuleBasedStateMachine):
    """Candidates, turns, replicas, operators and time in any order."""

    @initialize()
    def start(self) -> None:
        self.adapters = {BASE.name: adapter(BASE.name, S.LOADED)}
        self.table: TrafficTable | None = None
        self.counts = CanaryCounts()
        self.now = NOW
        self.ready = {BASE.name}
        self.fractions: list[float] = []
        self.made = 0
        self.by_person = False

    def apply(self, found: Plan) -> None:
        """What `Registry.apply` does, in memory."""
        for change in found.changes:
            known = self.adapters[change.name]
            assert known.revision == change.revision
            assert change.to in TRANSITIONS[known.state]
            self.adapters[change.name] = msgspec.structs.replace(
                known, state=change.to, revision=known.revision + 1, changed_at=self.now
            )
        if found.table is not None:
            before = self.table
            self.table = msgspec.structs.replace(found.table, revision=(before.revision if before else 0) + 1)
            self.check_ramp(before, self.table)

    def check_ramp(self, before: TrafficTable | None, new: TrafficTable) -> None:
        """Stages come in order and none is left out, unless a person said so."""
        if new.canary is not None:
            fresh = before is None or before.canary != new.canary
            self.fractions = [new.canary_fraction] if fresh else [*self.fractions, new.canary_fraction]
            assert self.fractions == ROLLOUT.canary_steps[: len(self.fractions)]
        elif before is not None and before.canary == new.stable and not self.by_person:
            assert self.fractions == ROLLOUT.canary_steps

    @rule(evaluated=st.booleans())
    def candidate_arrives(self, evaluated: bool) -> None:
        self.made += 1
        name = f"run-{self.made:08d}"
        self.adapters[name] = adapter(name, S.EVALUATED if evaluated else S.REGISTERED, created_at=self.now)

    @rule(data=st.data())
    def replicas_load_or_lose(self, data: st.DataObject) -> None:
        wanted = sorted(n for n, a in self.adapters.items() if a.state in LIVE | {S.EVALUATED})
        self.ready = set(data.draw(st.lists(st.sampled_from(wanted), unique=True))) if wanted else set()

    @rule()
    def replicas_have_everything(self) -> None:
        self.ready = set(self.adapters)

    @rule(seconds=st.floats(0.1, 30), turns=st.integers(0, 40), failing=st.booleans())
    def time_passes_and_users_chat(self, seconds: float, turns: int, failing: bool) -> None:
        self.now += timedelta(seconds=seconds)
        for n in range(turns if self.table and self.table.canary else 0):
            assert self.table is not None and self.table.canary is not None
            self.counts = count(self.counts, self.table, self.table.canary, failed=failing and n % 2 == 0)

    @rule()
    def controller_passes(self) -> None:
        self.by_person = False
        in_order = list(self.adapters.values())
        found = plan(in_order, self.table, frozenset(self.ready), self.counts, ROLLOUT, self.now)
        if found is not None:
            self.apply(found)

    @precondition(lambda self: self.table is not None)
    @rule(data=st.data())
    def operator_promotes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.adapters)))
        before = self.adapters[name].state
        self.by_person = True
        try:
            self.apply(promotion(list(self.adapters.values()), self.table, name, self.now, "op"))
        except TransitionRefused:
            assert before not in {S.LOADED, S.CANARY, S.SUPERSEDED}
        else:
            assert before in {S.LOADED, S.CANARY, S.SUPERSEDED}

    @precondition(lambda self: self.table is not None)
    @rule()
    def operator_rolls_back(self) -> None:
        assert self.table is not None
        self.by_person = True
        serving = self.table.stable, self.table.canary
        try:
            self.apply(rollback(list(self.adapters.values()), self.table, self.now, "op"))
        except TransitionRefused:
            assert (*serving, self.table.previous) == (BASE.name, None, None)
        else:
            assert (self.table.stable, self.table.canary) != serving

    @invariant()
    def table_and_states_agree(self) -> None:
        by_state = {s: {n for n, a in self.adapters.items() if a.state is s} for s in AdapterState}
        if self.table is None:
            return
        assert by_state[S.STABLE] == {self.table.stable}
        assert by_state[S.CANARY] == ({self.table.canary} if self.table.canary else set())
        named = {self.table.stable, self.table.canary, self.table.previous, *self.table.pinnable} - {None}
        assert all(self.adapters[str(n)].state in LIVE for n in named)

    @invariant()
    def superseded_adapters_are_reachable(self) -> None:
        """Nothing stays loaded for ever: what is superseded is `previous`, or the base."""
        for name, found in self.adapters.items():
            if found.state is S.SUPERSEDED and self.table is not None:
                assert name in {self.table.previous, BASE.name}

    @invariant()
    def the_base_is_always_there(self) -> None:
        assert self.adapters[BASE.name].state in LIVE


Rollouts.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRollouts = Rollouts.TestCase
