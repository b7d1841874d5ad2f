"""The planner's rules as a table, its laws as properties, and a node's life as a simulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnetpods_api import Reason, Usage
from vnetpods_operator.planning.model import Change, Nic, Observed, Plan, Wanted, count
from vnetpods_operator.planning.planner import plan

NOW = 1000.0


def addresses(number: int, start: int = 10) -> tuple[str, ...]:
    return tuple(f"10.0.{(start + i) // 256}.{(start + i) % 256}" for i in range(number))


def nic(number: int = 0, *, capacity: int = 255, ours: bool = True, **more: Any) -> Nic:
    have = addresses(number)
    default: dict[str, Any] = {
        "name": "nic",
        "addresses": have,
        "names": named(have),
        "removable": frozenset(have if ours else ()),
        "slots": capacity - number,
        "prefixes": ("10.0.0.0/16",),
    }
    return Nic(**(default | more))


def named(addresses: Iterable[str]) -> dict[str, str]:
    return {address: f"vnetpods-{address}" for address in addresses}


def names(addresses: Iterable[str]) -> set[str]:
    return set(named(addresses).values())


def acknowledged(addresses: Iterable[str]) -> dict[str, Any]:
    """The agent has released these, and its report answers the request."""
    return {"released": frozenset(addresses), "acknowledged": frozenset(addresses)}


def usage(assigned: int = 0, free: int = 0, waiting: int = 0, cooling: int = 0, known: int | None = None) -> Usage:
    known = assigned + free + cooling if known is None else known
    return Usage(assigned=assigned, cooling=cooling, free=free, waiting=waiting, known=known)


def wanted(**more: Any) -> Wanted:
    return Wanted(**({"minimum": 16, "warm": 16, "batch": 16, "maximum": 250} | more))


def made(observed: Observed, **more: Any) -> Plan:
    return plan(observed, wanted(**more), NOW)


def change(found: Plan) -> Change:
    assert len(found.changes) == 1
    return found.changes[0]


GROWTH = [
    # id, addresses, usage, sizing, expected growth, reason or limit
    ("first-sight-takes-the-minimum", 0, None, {}, 16, Reason.GROWING),
    ("a-larger-minimum-in-one-step", 0, None, {"minimum": 64}, 64, Reason.GROWING),
    ("warm-beyond-the-minimum-in-one-step", 0, None, {"minimum": 4, "warm": 20}, 20, Reason.GROWING),
    ("enough", 32, usage(16, 16), {}, 0, Reason.IDLE),
    ("one-short-costs-a-batch", 32, usage(17, 15), {}, 16, Reason.GROWING),
    ("half-of-what-is-assigned", 100, usage(90, 10), {}, 45, Reason.GROWING),
    ("waiting-pods-all-at-once", 16, usage(16, 0, waiting=100), {}, 116, Reason.GROWING),
    ("waiting-although-nothing-is-warm", 16, usage(16, 0, waiting=1), {"warm": 0, "batch": 1}, 8, Reason.GROWING),
    ("up-to-the-maximum", 240, usage(240, 0, waiting=10), {}, 10, Reason.GROWING),
    ("not-beyond-the-maximum", 250, usage(250, 0, waiting=10), {}, 0, Reason.AT_CAPACITY),
    ("not-beyond-the-nic", 250, usage(250, 0, waiting=10), {"maximum": 4096}, 5, Reason.GROWING),
    ("a-full-nic", 255, usage(255, 0, waiting=10), {"maximum": 4096}, 0, Reason.AT_CAPACITY),
    ("granted-but-not-yet-counted-is-free", 32, usage(16, 0, waiting=0, known=16), {}, 0, Reason.IDLE),
    ("cooling-is-not-free", 32, usage(8, 15, cooling=9), {}, 16, Reason.GROWING),
    ("nothing-wanted", 0, usage(), {"minimum": 0, "warm": 0}, 0, Reason.IDLE),
    ("minimum-kept-without-demand", 10, usage(0, 10), {"warm": 0}, 6, Reason.GROWING),
]


@pytest.mark.parametrize(
    ("have", "uses", "sizing", "expected", "reason"), [row[1:] for row in GROWTH], ids=[row[0] for row in GROWTH]
)
def test_growth(have: int, uses: Usage | None, sizing: dict[str, Any], expected: int, reason: Reason) -> None:
    found = made(Observed(nics=(nic(have),), usage=uses), **sizing)
    assert sum(c.add for c in found.changes) == expected
    assert reason in (found.reason, found.limit)


def test_what_is_on_the_way_is_not_asked_for_again() -> None:
    found = made(Observed(nics=(nic(16, pending=16),), usage=usage(16, 0)))
    assert found.changes == ()


def test_an_agent_that_says_no_known_is_understood() -> None:
    uses = Usage(assigned=16, cooling=0, free=0, waiting=0)
    found = made(Observed(nics=(nic(32),), usage=uses))
    assert found.free == 16
    assert found.changes == ()


def test_a_busy_nic_is_left_alone() -> None:
    found = made(Observed(nics=(nic(0, busy=True),)))
    assert found.changes == ()
    assert found.look_again == NOW + 2


def test_paused_changes_nothing() -> None:
    have = addresses(40)
    observed = Observed(nics=(nic(40),), usage=usage(0, 20), releasing=frozenset(have[:4]), **acknowledged(have[:4]))
    found = made(observed, paused=True)
    assert (found.changes, found.reason, found.releasing) == ((), Reason.PAUSED, frozenset(have[:4]))


class TestSubnet:
    def test_full_means_wait(self) -> None:
        found = made(Observed(nics=(nic(0, grow_after=NOW + 30),)))
        assert (found.changes, found.limit, found.look_again) == ((), Reason.SUBNET_FULL, NOW + 30)

    def test_nearly_full_means_less(self) -> None:
        found = made(Observed(nics=(nic(0, grow_most=3),)))
        assert (change(found).add, found.limit) == (3, Reason.SUBNET_FULL)

    def test_the_other_nic_helps(self) -> None:
        full, other = nic(0, grow_after=NOW + 30), nic(0, name="other")
        found = made(Observed(nics=(full, other)))
        assert (change(found).nic, change(found).add) == ("other", 16)

    def test_nothing_more_from_where_only_excluded_addresses_come(self) -> None:
        found = made(Observed(nics=(nic(0, barred=48),)))
        assert (found.changes, found.limit, found.look_again) == ((), Reason.SUBNET_FULL, None)
        assert "exclude less" in found.detail
        assert change(made(Observed(nics=(nic(0, barred=48), nic(0, name="other"))))).nic == "other"

    @pytest.mark.parametrize(("barred", "waiting"), [(47, 0), (48, 20)], ids=["fewer", "more-is-needed-now"])
    def test_until_three_times_the_need_came_in_vain(self, barred: int, waiting: int) -> None:
        assert change(made(Observed(nics=(nic(0, barred=barred),), usage=usage(waiting=waiting)))).add >= 16

    def test_full_does_not_stop_releases(self) -> None:
        """terway#100: allocation failures must not starve release."""
        have = addresses(8)
        observed = Observed(
            nics=(nic(8, grow_after=NOW + 30),),
            usage=usage(0, 0, waiting=5, known=8),
            releasing=frozenset(have[:2]),
            **acknowledged(have[:2]),
        )
        assert change(made(observed)).remove == names(have[:2])


class TestBlocks:
    def test_sixteen_become_a_block(self) -> None:
        found = made(Observed(nics=(nic(0),)), minimum=40, blocks=True)
        assert (change(found).blocks, change(found).add) == (2, 8)

    def test_a_block_takes_one_slot(self) -> None:
        found = made(Observed(nics=(nic(0, capacity=3),)), minimum=48, blocks=True, maximum=4096)
        assert (change(found).blocks, change(found).add) == (3, 0)

    def test_blocks_count_sixteen(self) -> None:
        assert count(("10.0.0.1", "10.0.0.16/28")) == 17


class TestRelease:
    HAVE = addresses(64)

    def observed(self, **more: Any) -> Observed:
        given: dict[str, Any] = {
            "nics": (nic(64),),
            "usage": usage(10, 54),
            "agent_ready": True,
            "answers": True,
            "surplus_since": NOW - 600,
        }
        return Observed(**(given | more))

    def test_starts_after_a_while_and_stops_at_twice_warm(self) -> None:
        found = made(self.observed())
        assert found.changes == ()
        assert len(found.releasing) == 54 - 32
        assert found.reason is Reason.RELEASING

    def test_not_before(self) -> None:
        found = made(self.observed(surplus_since=NOW - 599))
        assert (found.releasing, found.surplus, found.look_again) == (frozenset(), True, NOW + 1)

    def test_surplus_seen_for_the_first_time(self) -> None:
        found = made(self.observed(surplus_since=None))
        assert (found.releasing, found.surplus, found.look_again) == (frozenset(), True, NOW + 600)

    def test_in_batches(self) -> None:
        assert len(made(self.observed(), release_batch=5).releasing) == 5

    def test_not_below_the_minimum(self) -> None:
        assert len(made(self.observed(), minimum=60).releasing) == 4

    def test_twice_warm_is_kept(self) -> None:
        found = made(self.observed(usage=usage(32, 32)))
        assert (found.surplus, found.releasing) == (False, frozenset())

    def test_nothing_without_an_agent(self) -> None:
        assert made(self.observed(usage=None)).releasing == frozenset()

    def test_adopted_addresses_stay(self) -> None:
        found = made(self.observed(nics=(nic(64, ours=False),)))
        assert found.releasing == frozenset()

    def test_acknowledged_ones_are_removed(self) -> None:
        asked, gone = frozenset(self.HAVE[:6]), frozenset(self.HAVE[:4])
        found = made(self.observed(usage=usage(10, 48), releasing=asked, releasing_since=NOW, **acknowledged(gone)))
        assert change(found).remove == names(gone)
        assert found.releasing == asked

    def test_acknowledged_ones_are_removed_even_when_pods_wait(self) -> None:
        asked = frozenset(self.HAVE[:4])
        found = made(self.observed(usage=usage(60, 0, waiting=9), releasing=asked, **acknowledged(asked)))
        assert change(found).remove == names(asked)
        assert change(found).add > 0

    def test_others_are_kept_when_addresses_are_short(self) -> None:
        asked = frozenset(self.HAVE[:40])
        found = made(self.observed(usage=usage(10, 14, known=64), releasing=asked, releasing_since=NOW))
        assert found.releasing == frozenset()
        assert found.changes == ()

    def test_held_ones_are_given_up_on(self) -> None:
        asked = frozenset(self.HAVE[:2])
        found = made(self.observed(usage=usage(10, 52), releasing=asked, releasing_since=NOW - 120))
        assert (found.releasing, found.overdue) == (frozenset(), asked)

    def test_held_ones_are_given_up_on_at_once_when_the_agent_says_so(self) -> None:
        asked, kept = frozenset(self.HAVE[:4]), frozenset(self.HAVE[:2])
        found = made(self.observed(usage=usage(10, 50), releasing=asked, kept=kept, releasing_since=NOW))
        assert (found.releasing, found.overdue) == (asked - kept, kept)

    def test_held_ones_are_left_in_peace_for_a_while(self) -> None:
        refused = dict.fromkeys(self.HAVE, NOW - 50)
        found = made(self.observed(refused=refused))
        assert (found.releasing, found.look_again) == (frozenset(), NOW + 70)

    def test_a_silent_agent_is_waited_for(self) -> None:
        asked = frozenset(self.HAVE[:2])
        found = made(self.observed(usage=usage(10, 52), releasing=asked, releasing_since=NOW - 120, agent_ready=False))
        assert (found.releasing, found.limit) == (asked, Reason.AGENT_SILENT)

    def test_refused_ones_are_tried_last(self) -> None:
        refused = dict.fromkeys(self.HAVE[40:], NOW - 50)
        found = made(self.observed(refused=refused))
        assert not found.releasing & refused.keys()

    def test_when_all_were_refused_the_latest_are_tried_last(self) -> None:
        """Pods come and go: what was held an hour ago may be free, what was held a minute ago hardly is."""
        refused = {address: NOW - 1000 + number for number, address in enumerate(self.HAVE)}
        found = made(self.observed(refused=refused))
        assert found.releasing == frozenset(self.HAVE[:22])

    def test_what_is_retired_without_being_asked_for_is_asked_for(self) -> None:
        """By a former operator, or before the API server was restored: the node will never use it again."""
        retired = frozenset(self.HAVE[60:])
        found = made(self.observed(released=retired, surplus_since=None))
        assert (found.releasing, found.changes, found.reason) == (retired, (), Reason.RELEASING)

    def test_an_answer_to_another_question_removes_nothing_and_is_not_cancelled(self) -> None:
        asked = frozenset(self.HAVE[:6])
        found = made(self.observed(usage=usage(58, 0, waiting=9), releasing=asked, released=asked, releasing_since=NOW))
        assert found.releasing == asked
        assert [c.remove for c in found.changes] == [frozenset()]

    def test_an_agent_that_does_not_say_what_it_answers_is_asked_for_nothing(self) -> None:
        assert made(self.observed(answers=False)).releasing == frozenset()
        asked = frozenset(self.HAVE[:2])
        begun = self.observed(answers=False, releasing=asked, released=asked, releasing_since=NOW - 120)
        found = made(begun)
        assert (found.releasing, found.changes, found.limit) == (asked, (), Reason.AGENT_SILENT)
        assert "upgrade it" in found.detail

    def test_excluded_ones_go_without_waiting(self) -> None:
        out = frozenset(self.HAVE[:1])
        found = made(self.observed(nics=(nic(64, excluded=out),), surplus_since=None))
        assert found.releasing == out

    def test_what_is_excluded_just_now_is_no_surplus(self) -> None:
        """How many of these are free, the agent has to say first."""
        out = frozenset(self.HAVE[:20])
        assert made(self.observed(nics=(nic(64, excluded=out),))).releasing == out

    def test_excluded_ones_that_pods_keep_stay_asked_for_and_cost_nothing(self) -> None:
        out = frozenset(self.HAVE[:2])
        held = self.observed(
            nics=(nic(64, excluded=out),), usage=usage(32, 32), releasing=out, kept=out, releasing_since=NOW - 5
        )
        found = made(held)
        assert (found.releasing, found.overdue, found.look_again) == (out, frozenset(), None)
        assert (found.changes, found.reason) == ((), Reason.IDLE)

    def test_excluded_ones_that_pods_keep_are_not_free_for_others(self) -> None:
        out = frozenset(addresses(20))
        held = Observed(
            nics=(nic(20, excluded=out),), usage=usage(20, 0, waiting=3), releasing=out, kept=out, agent_ready=True
        )
        found = made(held, minimum=4, warm=4, batch=4)
        assert (found.free, found.releasing) == (0, out)
        assert change(found).add >= 7

    def test_kept_ones_are_not_free_for_others(self) -> None:
        asked = frozenset(self.HAVE[:20])
        held = self.observed(usage=usage(64, 0, waiting=3), releasing=asked, kept=asked, releasing_since=NOW)
        found = made(held)
        assert (found.free, found.releasing, found.overdue) == (0, frozenset(), asked)
        assert change(found).add >= 19

    def test_excluded_ones_that_pods_keep_do_not_hinder_other_releases(self) -> None:
        out = frozenset(self.HAVE[:1])
        found = made(self.observed(nics=(nic(64, excluded=out),), releasing=out, kept=out))
        assert out < found.releasing
        assert len(found.releasing - out) == 54 - 32

    @pytest.mark.parametrize("answered", [False, True])
    def test_what_is_not_ours_is_not_asked_for_any_longer(self, answered: bool) -> None:
        """It can't be removed, so an acknowledged release of it would never come to its end."""
        asked = frozenset(self.HAVE[:6])
        observed = self.observed(
            nics=(nic(64, removable=frozenset(self.HAVE[4:])),),
            releasing=asked,
            releasing_since=NOW,
            **acknowledged(asked if answered else ()),
        )
        found = made(observed)
        assert found.releasing == frozenset(self.HAVE[4:6])
        assert [c.remove for c in found.changes] == ([names(found.releasing)] if answered else [])

    @pytest.mark.parametrize("answered", [False, True])
    def test_what_another_node_counts_on_stays_and_is_used_again_only_without_a_promise(self, answered: bool) -> None:
        asked, others = frozenset(self.HAVE[:6]), frozenset(self.HAVE[:2])
        observed = self.observed(
            nics=(nic(64, claimed=others),),
            releasing=asked,
            releasing_since=NOW,
            **acknowledged(asked if answered else ()),
        )
        found = made(observed)
        assert found.releasing == (asked if answered else asked - others)
        assert [c.remove for c in found.changes] == ([names(asked - others)] if answered else [])


LOST = frozenset({"10.0.9.8", "10.0.9.9", "10.1.9.9"})


class TestRepair:
    def test_nothing_is_asked_for_that_the_pool_never_listed(self) -> None:
        """An agent that somebody else controls names whatever it likes."""
        found = made(
            Observed(nics=(nic(31),), usage=usage(16, 16, known=31), missing=("10.0.7.7", "10.0.9.9"), lost=LOST)
        )
        assert change(found).restore == ("10.0.9.9",)
        assert "nothing is asked for 10.0.7.7" in found.detail

    def test_not_beyond_the_maximum(self) -> None:
        lost = addresses(50, start=512)
        found = made(
            Observed(nics=(nic(8),), usage=usage(8, 0, waiting=9, known=8), missing=lost, lost=frozenset(lost)),
            maximum=16,
        )
        assert change(found) == Change("nic", restore=lost[:8])

    def test_not_beyond_the_slots(self) -> None:
        lost = addresses(9, start=512)
        found = made(Observed(nics=(nic(8, slots=3),), usage=usage(8, 0, known=8), missing=lost, lost=frozenset(lost)))
        assert change(found) == Change("nic", restore=lost[:3])

    def test_lost_addresses_are_asked_for_by_value(self) -> None:
        found = made(Observed(nics=(nic(31),), usage=usage(16, 16, known=31), missing=("10.0.9.9",), lost=LOST))
        assert change(found).restore == ("10.0.9.9",)
        assert found.limit is Reason.ADDRESS_LOST

    def test_not_again_what_azure_refused_a_moment_ago(self) -> None:
        lost = ("10.0.9.8", "10.0.9.9")
        found = made(
            Observed(
                nics=(nic(31),),
                usage=usage(16, 16, known=31),
                missing=lost,
                lost=LOST,
                contested=frozenset({"10.0.9.9"}),
            )
        )
        assert change(found).restore == ("10.0.9.8",)

    @pytest.mark.parametrize(
        ("nics", "more", "why"),
        [
            ((nic(8),), {"contested": LOST}, "another NIC has it by now"),
            ((nic(8),), {"lost": frozenset[str]()}, "never listed"),
            ((nic(8, slots=0),), {}, "can't be added"),
            ((nic(250),), {}, "can't be added"),
            ((nic(8, prefixes=("10.7.0.0/16",)),), {}, "can't be added"),
        ],
        ids=["taken", "unknown", "no-slot", "maximum", "other-subnet"],
    )
    def test_what_will_not_come_back_is_a_matter_for_a_person(
        self, nics: tuple[Nic, ...], more: dict[str, Any], why: str
    ) -> None:
        known: dict[str, Any] = {"usage": usage(4, 4, known=8), "missing": ("10.0.9.9",), "lost": LOST}
        found = made(Observed(nics=nics, **(known | more)))
        assert found.changes == () or not change(found).restore
        assert found.limit is Reason.ADDRESS_LOST
        assert why in found.detail
        assert found.detail.endswith(": restart those pods")

    def test_nobody_is_sent_while_it_may_still_come_back(self) -> None:
        known: dict[str, Any] = {"usage": usage(4, 4, known=8), "missing": ("10.0.9.9",), "lost": LOST}
        for found in (made(Observed(nics=(nic(8),), **known)), made(Observed(nics=(nic(8, busy=True),), **known))):
            assert "restart" not in found.detail

    def test_only_where_they_belong(self) -> None:
        other = nic(0, name="other", prefixes=("10.1.0.0/16",))
        found = made(Observed(nics=(nic(31), other), usage=usage(16, 16, known=31), missing=("10.1.9.9",), lost=LOST))
        assert (change(found).nic, change(found).restore) == ("other", ("10.1.9.9",))

    def test_not_what_is_on_the_nic_in_a_bad_state(self) -> None:
        """Azure would answer that the address is allocated: to this very NIC."""
        bad = nic(31, unusable=frozenset({"10.0.9.9"}), failed=True)
        found = made(Observed(nics=(bad,), usage=usage(16, 16, known=31), missing=("10.0.9.9",)))
        assert change(found) == Change("nic", rewrite=True)

    def test_half_made_entries_go(self) -> None:
        found = made(Observed(nics=(nic(32, broken=frozenset({"vnetpods-1"})),), usage=usage(16, 16)))
        assert change(found).sweep == {"vnetpods-1"}

    def test_a_failed_nic_is_written_again(self) -> None:
        found = made(Observed(nics=(nic(32, failed=True),), usage=usage(16, 16)))
        assert change(found) == Change("nic", rewrite=True)

    def test_but_not_at_once_again(self) -> None:
        found = made(Observed(nics=(nic(32, failed=True),), usage=usage(16, 16), repair_after=NOW + 60))
        assert (found.changes, found.look_again) == ((), NOW + 60)

    def test_a_nic_that_stays_failed_is_reported(self) -> None:
        found = made(Observed(nics=(nic(32, failed=True),), usage=usage(16, 16), repairs=3, repair_after=NOW + 60))
        assert found.limit is Reason.NIC_FAILED

    def test_nothing_shrinks_while_an_address_is_lost(self) -> None:
        lost = Observed(
            nics=(nic(64),), usage=usage(10, 54), missing=("10.9.9.9",), surplus_since=0.0, agent_ready=True
        )
        assert made(lost).releasing == frozenset()


# laws


@st.composite
def situations(draw: st.DrawFn) -> tuple[Observed, Wanted]:
    have = draw(st.integers(0, 80))
    all_addresses = addresses(have)
    some = st.frozensets(st.sampled_from(all_addresses)) if have else st.just(frozenset[str]())
    ours, releasing, released, kept, claimed = draw(some), draw(some), draw(some), draw(some), draw(some)
    answered = draw(st.booleans())
    assigned = draw(st.integers(0, have))
    found = nic(
        have,
        capacity=draw(st.integers(have, 255)),
        removable=ours,
        claimed=claimed,
        pending=draw(st.integers(0, 20)),
        busy=draw(st.booleans()),
        failed=draw(st.booleans()),
        grow_after=draw(st.sampled_from([0.0, NOW + 10])),
        grow_most=draw(st.sampled_from([1, 3, 256])),
    )
    uses = draw(
        st.none()
        | st.builds(
            usage,
            st.just(assigned),
            st.integers(0, have - assigned),
            st.integers(0, 300),
            known=st.integers(0, have),
        )
    )
    observed = Observed(
        nics=(found,),
        releasing=releasing,
        released=released,
        acknowledged=released & releasing if answered else frozenset(),
        answers=answered or draw(st.booleans()),
        kept=kept,
        missing=draw(st.sampled_from([(), ("10.0.99.9",), ("192.0.2.1",)])),
        lost=draw(st.sampled_from([frozenset[str](), frozenset({"10.0.99.9", "192.0.2.1"})])),
        usage=uses,
        agent_ready=draw(st.booleans()),
        surplus_since=draw(st.none() | st.sampled_from([0.0, NOW - 10, NOW])),
        releasing_since=draw(st.none() | st.sampled_from([0.0, NOW])),
        refused=dict.fromkeys(draw(some), NOW - 5),
    )
    maximum = draw(st.integers(0, 300))
    sizes = wanted(
        minimum=draw(st.integers(0, maximum)),
        warm=draw(st.integers(0, maximum)),
        batch=draw(st.integers(1, 256)),
        maximum=maximum,
        blocks=draw(st.booleans()),
        paused=draw(st.booleans()),
    )
    return observed, sizes


@settings(deadline=None)
@given(situations())
def test_laws(situation: tuple[Observed, Wanted]) -> None:
    observed, sizes = situation
    found = plan(observed, sizes, NOW)
    (only,) = observed.nics
    for edit in found.changes:
        assert edit.remove <= names(observed.acknowledged & only.removable - only.claimed)
        added = edit.add + 16 * edit.blocks
        assert edit.add + edit.blocks + len(edit.restore) <= only.slots + len(edit.remove) + len(edit.sweep)
        if added:
            assert count(only.addresses) - len(edit.remove) + only.pending + added <= sizes.maximum
            assert added <= only.grow_most
        assert not only.busy
        assert set(edit.restore) <= observed.lost & set(observed.missing)
    started = found.releasing - observed.releasing
    assert started <= only.removable
    assert observed.released & only.removable <= found.releasing or sizes.paused
    assert not (started & only.claimed) - observed.released
    assert observed.answers or not started - observed.released
    cancelled = (observed.releasing & set(only.addresses)) - found.releasing
    assert not cancelled & observed.released & only.removable
    assert not found.releasing & (set(only.addresses) - only.removable) or sizes.paused
    assert found.look_again is None or found.look_again > NOW
    if sizes.paused:
        assert found.changes == ()
        assert not started


@settings(deadline=None)
@given(situations())
def test_a_plan_that_came_true_leaves_nothing_to_do(situation: tuple[Observed, Wanted]) -> None:
    """Apply the plan as Azure and a prompt agent would, a few times: it comes to rest."""
    observed, sizes = situation
    observed = dataclasses.replace(observed, missing=(), nics=(dataclasses.replace(observed.nics[0], busy=False),))
    for _ in range(400):
        found = plan(observed, sizes, NOW)
        if not found.changes and found.releasing == observed.releasing & set(observed.nics[0].addresses):
            return
        observed = _come_true(observed, found)
    raise AssertionError(f"still {found}")


def _come_true(observed: Observed, found: Plan) -> Observed:
    (only,) = observed.nics
    have = list(only.addresses)
    fresh = (address for address in addresses(5000, start=2000) if address not in only.addresses)
    for edit in found.changes:
        have = [a for a in have if only.names.get(a) not in edit.remove]
        have += [next(fresh) for _ in range(edit.add + 16 * edit.blocks)]
    ours = only.removable | (set(have) - set(only.addresses))
    after = dataclasses.replace(
        only,
        addresses=tuple(have),
        names=named(have),
        removable=frozenset(ours & set(have)),
        slots=max(0, only.slots + len(only.addresses) - len(have)),
        failed=False,
        broken=frozenset(),
        pending=0,
    )
    releasing = found.releasing & set(have)
    answer = acknowledged(releasing) if observed.answers else {}
    uses = observed.usage
    if uses is not None:
        assigned = min(uses.assigned + uses.waiting, len(have) - len(releasing))
        served = max(0, assigned - uses.assigned)
        free = max(0, len(have) - len(releasing) - assigned)
        uses = usage(assigned, free, uses.waiting - served, known=len(have))
    return dataclasses.replace(observed, nics=(after,), releasing=releasing, usage=uses, releasing_since=None, **answer)


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 400), st.floats(2.0, 60.0))
def test_250_pods_at_once_take_six_writes(per_second: int, write_seconds: float) -> None:
    """Pods come at this rate while each NIC write takes so long."""
    have, come, writes, now = 0, 0.0, 0, 0.0
    while have < 250 or come < 250:
        come = min(250.0, come + per_second * write_seconds)
        pods = int(come)
        assigned = min(pods, have)
        uses = usage(assigned, have - assigned, pods - assigned, known=have)
        found = plan(Observed(nics=(nic(have),), usage=uses), wanted(), now)
        if found.changes:
            writes += 1
            have += sum(c.add for c in found.changes)
        now += write_seconds
        if have >= 250 and int(come) >= 250:
            break
    assert writes <= 6


def test_churn_within_the_warm_addresses_takes_no_write() -> None:
    for assigned in range(1, 17):
        found = made(Observed(nics=(nic(32),), usage=usage(assigned, 32 - assigned)))
        assert (found.changes, found.releasing) == ((), frozenset())
