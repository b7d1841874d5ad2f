from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from vnetpods_agent.attachment import Address, AttachmentKey
from vnetpods_agent.pool import Pool, expand
from vnetpods_api import Interface, Usage

COOLDOWN = 30.0
NOW = 1_000_000.0


def interface(
    *addresses: str, releasing: tuple[str, ...] = (), primary: str = "10.0.0.4", name: str = "nic"
) -> Interface:
    mac = f"00:0d:3a:00:00:{len(name):02x}"
    return Interface(name=name, mac=mac, subnet="s", primary_address=primary, addresses=addresses, releasing=releasing)


def key(name: str) -> AttachmentKey:
    return AttachmentKey("vnetpods", name, "eth0")


def pool(*addresses: str, cooldown: float = COOLDOWN) -> Pool:
    made = Pool(cooldown)
    made.supply([interface(*addresses)])
    return made


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        pytest.param("10.0.0.5", ["10.0.0.5"], id="single"),
        pytest.param("10.0.0.16/28", [f"10.0.0.{n}" for n in range(16, 32)], id="block"),
        pytest.param("10.0.0.17/28", [f"10.0.0.{n}" for n in range(16, 32)], id="block-with-host-bits"),
        pytest.param("999.0.0.1", [], id="no-address"),
        pytest.param("10.0.0.0/8", [], id="too-large"),
        pytest.param("", [], id="empty"),
    ],
)
def test_units(unit: str, expected: list[str]) -> None:
    assert list(expand(unit)) == expected


def test_what_is_listed_without_a_nic() -> None:
    """Of a NIC that isn't there, whether its addresses are blocked or not."""
    here, there = interface("10.0.0.5"), interface("10.0.1.5", "10.0.1.6", releasing=("10.0.1.5",), name="other")
    made = Pool(COOLDOWN)
    made.supply([here, there])
    assert (made.listed(), made.listed([there.mac]), made.listed([here.mac])) == (2, 1, 1)
    assert made.listed([here.mac, there.mac]) == 0


class TestChoice:
    def test_the_one_unused_for_longest_comes_first_and_those_never_used_before_all(self) -> None:
        made = pool("10.0.0.5", "10.0.0.6", "10.0.0.7")
        assert made.take(key("a"), NOW) == "10.0.0.5"
        assert made.take(key("b"), NOW) == "10.0.0.6"
        made.release(Address("10.0.0.6"), NOW)
        made.release(Address("10.0.0.5"), NOW + 1)
        later = NOW + 2 * COOLDOWN
        assert [made.take(key(name), later) for name in "cde"] == ["10.0.0.7", "10.0.0.6", "10.0.0.5"]

    def test_that_order_survives_a_restart(self) -> None:
        made = Pool(COOLDOWN)
        made.restore({}, {Address("10.0.0.5"): NOW, Address("10.0.0.6"): NOW - 1}, [])
        made.supply([interface("10.0.0.5", "10.0.0.6", "10.0.0.7")])
        later = NOW + 2 * COOLDOWN
        assert [made.take(key(name), later) for name in "abc"] == ["10.0.0.7", "10.0.0.6", "10.0.0.5"]

    def test_the_primary_address_is_never_given_to_a_pod(self) -> None:
        made = Pool(COOLDOWN)
        made.supply([interface("10.0.0.4", "10.0.1.4", name="a"), interface("10.0.1.5", primary="10.0.1.4", name="b2")])
        assert made.take(key("a"), NOW) == "10.0.1.5"
        assert made.take(key("b"), NOW) is None

    def test_addresses_elsewhere_in_the_kernel_are_left_out(self) -> None:
        elsewhere = frozenset({Address("10.0.0.5")})
        made = Pool(COOLDOWN, lambda: elsewhere)
        made.supply([interface("10.0.0.5", "10.0.0.6")])
        assert made.usage(NOW).free == 1
        assert made.take(key("a"), NOW) == "10.0.0.6"
        assert made.take(key("b"), NOW) is None
        elsewhere = frozenset()
        assert made.serve(NOW) == [(key("b"), "10.0.0.5")]


class TestCooldown:
    @pytest.mark.parametrize(("after", "free"), [(0.0, 0), (COOLDOWN - 0.1, 0), (COOLDOWN, 1)])
    def test_lasts(self, after: float, free: int) -> None:
        made = pool("10.0.0.5")
        made.take(key("a"), NOW)
        made.release(Address("10.0.0.5"), NOW)
        assert made.usage(NOW + after) == Usage(assigned=0, cooling=1 - free, free=free, waiting=0)
        assert made.next_change(NOW + after) == (None if free else NOW + COOLDOWN)

    def test_is_remembered_for_an_address_that_leaves_and_comes_back(self) -> None:
        made = pool("10.0.0.5", "10.0.0.6")
        made.take(key("a"), NOW)
        made.release(Address("10.0.0.5"), NOW)
        made.supply([interface("10.0.0.6")])
        made.supply([interface("10.0.0.5")])
        assert made.take(key("b"), NOW + 1) is None

    def test_begins_anew_when_the_clock_is_set_back(self) -> None:
        made = pool("10.0.0.5")
        made.take(key("a"), NOW)
        made.release(Address("10.0.0.5"), NOW)
        hour_ago = NOW - 3600
        assert made.take(key("b"), hour_ago) is None
        assert made.serve(hour_ago + COOLDOWN) == [(key("b"), "10.0.0.5")]

    def test_is_not_shortened_by_who_asks_with_an_older_time(self) -> None:
        """A report that took seconds to be delivered asks what comes next with the time at which it began."""
        made = pool("10.0.0.5")
        made.take(key("a"), NOW)
        made.release(Address("10.0.0.5"), NOW)
        before = NOW - 20
        assert made.next_change(before) == NOW + COOLDOWN
        assert made.usage(before).cooling == 1
        assert made.withdrawable(before) == made.cold(before) == []
        assert made.take(key("b"), NOW + COOLDOWN - 1) is None

    def test_an_address_that_no_pod_ever_had_needs_none(self) -> None:
        made = pool("10.0.0.5", "10.0.0.6")
        made.take(key("a"), NOW)
        made.untake(Address("10.0.0.5"))
        assert made.take(key("b"), NOW) == "10.0.0.5"

    def test_what_is_cold_and_unlisted_may_be_forgotten(self) -> None:
        made = pool("10.0.0.5", "10.0.0.6")
        made.take(key("a"), NOW)
        made.release(Address("10.0.0.5"), NOW)
        made.supply([interface("10.0.0.6")])
        assert made.cold(NOW) == []
        assert made.cold(NOW + COOLDOWN) == ["10.0.0.5"]


class TestQueue:
    def test_the_first_to_come_is_the_first_to_get(self) -> None:
        made = pool()
        made.supply([interface()])
        for name in "abc":
            assert made.take(key(name), NOW) is None
        made.leave(key("b"))
        made.supply([interface("10.0.0.5", "10.0.0.6", "10.0.0.7")])
        assert made.serve(NOW) == [(key("a"), "10.0.0.5"), (key("c"), "10.0.0.6")]

    def test_a_newcomer_does_not_overtake(self) -> None:
        made = pool()
        made.take(key("a"), NOW)
        made.supply([interface("10.0.0.5")])
        assert made.take(key("b"), NOW) is None
        assert made.serve(NOW) == [(key("a"), "10.0.0.5")]
        assert made.usage(NOW) == Usage(assigned=1, waiting=1)


class TestRelease:
    def test_what_is_asked_back_is_not_given_out_even_when_pods_wait(self) -> None:
        made = pool()
        made.supply([interface("10.0.0.5", releasing=("10.0.0.5",))])
        assert made.take(key("a"), NOW) is None
        assert made.serve(NOW) == []

    def test_a_unit_goes_only_when_nobody_holds_it_and_it_has_cooled_down(self) -> None:
        made = pool("10.0.0.16/28")
        taken = made.take(key("a"), NOW)
        assert taken is not None
        made.supply([interface("10.0.0.16/28", releasing=("10.0.0.16/28",))])
        assert (made.withdrawable(NOW), made.kept()) == ([], ("10.0.0.16/28",))
        made.release(taken, NOW)
        assert made.kept() == ()
        assert made.withdrawable(NOW + COOLDOWN - 1) == []
        assert made.withdrawable(NOW + COOLDOWN) == ["10.0.0.16/28"]

    def test_a_unit_goes_only_when_its_former_pods_have_left_the_kernel(self) -> None:
        """Also without any cool-down. What the host itself holds may go."""
        leaving = {Address("10.0.0.20")}
        made = Pool(0.0, lambda: frozenset({Address("10.0.0.21")}), lambda: leaving)
        made.supply([interface("10.0.0.16/28", releasing=("10.0.0.16/28",))])
        assert made.withdrawable(NOW) == []
        leaving.clear()
        assert made.withdrawable(NOW) == ["10.0.0.16/28"]

    def test_once_withdrawn_it_is_reported_until_it_is_gone_and_then_forgotten(self) -> None:
        made = pool()
        made.supply([interface("10.0.0.5", "10.0.0.6", releasing=("10.0.0.5",))])
        made.withdraw(["10.0.0.5"])
        assert (made.released(), made.returning()) == (("10.0.0.5",), [])
        made.supply([interface("10.0.0.6")])
        assert (made.released(), made.returning()) == ((), ["10.0.0.5"])
        made.reinstate(["10.0.0.5"])
        assert made.returning() == []

    def test_a_cancelled_release_is_usable_only_once_reinstated(self) -> None:
        made = pool()
        made.supply([interface("10.0.0.5", releasing=("10.0.0.5",))])
        made.withdraw(["10.0.0.5"])
        made.supply([interface("10.0.0.5")])
        assert made.take(key("a"), NOW) is None
        made.reinstate(["10.0.0.5"])
        assert made.serve(NOW) == [(key("a"), "10.0.0.5")]

    def test_withdrawn_is_remembered_whatever_the_source_lists(self) -> None:
        """ACN PR#2022: marked for release, the node restarts, the address comes back as available."""
        made = Pool(COOLDOWN)
        made.restore({}, {}, ["10.0.0.5"])
        made.supply([interface("10.0.0.5")])
        assert made.take(key("a"), NOW) is None

    def test_a_unit_inside_a_blocked_block_is_blocked(self) -> None:
        made = pool()
        made.supply([interface("10.0.0.17", "10.0.0.16/28", releasing=("10.0.0.16/28",))])
        assert made.take(key("a"), NOW) is None


class TestAbsence:
    def test_no_interface_at_all_says_nothing(self) -> None:
        made = pool("10.0.0.5")
        made.supply([])
        assert made.take(key("a"), NOW) == "10.0.0.5"

    def test_before_anything_was_heard_nothing_is_missing(self) -> None:
        made = Pool(COOLDOWN)
        made.restore({Address("10.0.0.5"): key("a")}, {}, [])
        assert made.missing() == ()
        made.supply([interface("10.0.0.6")])
        assert made.missing() == ("10.0.0.5",)

    def test_an_address_that_vanishes_under_a_pod_stays_its_own(self) -> None:
        made = pool("10.0.0.5", "10.0.0.6")
        made.take(key("a"), NOW)
        made.supply([interface("10.0.0.6")])
        assert made.missing() == ("10.0.0.5",)
        assert made.usage(NOW) == Usage(assigned=1, free=1)
        made.supply([interface("10.0.0.5", "10.0.0.6")])
        assert made.missing() == ()
        assert [made.take(key(name), NOW) for name in "bc"] == ["10.0.0.6", None]


UNITS = ("10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8", "10.0.0.16/28")


class PoolAgainstModel(RuleBasedStateMachine):
    """Any order of operator's and pods' doings. The model knows who holds what and what was promised back."""

    pods = Bundle("pods")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(COOLDOWN)
        self.now = NOW
        self.names = (f"p{n}" for n in itertools.count())
        self.holders: dict[Address, AttachmentKey] = {}
        self.waiting: list[AttachmentKey] = []
        self.released: dict[Address, float] = {}
        self.listed: tuple[str, ...] = ()
        self.releasing: tuple[str, ...] = ()
        self.promised: set[str] = set()

    def granted(self, who: AttachmentKey, address: Address) -> None:
        assert address not in self.holders, "given twice"
        assert address in {a for unit in self.listed for a in expand(unit)}, "not on the NIC"
        blocked = {a for unit in (*self.releasing, *self.promised) for a in expand(unit)}
        assert address not in blocked, "asked back or promised"
        assert self.now - self.released.get(address, 0) >= COOLDOWN, "still cooling"
        self.holders[address] = who

    def served(self) -> None:
        for who, address in self.pool.serve(self.now):
            assert who == self.waiting.pop(0), "out of turn"
            self.granted(who, address)

    @rule(target=pods)
    def add(self) -> Any:
        who = key(next(self.names))
        address = self.pool.take(who, self.now)
        if address is None:
            self.waiting.append(who)
            return who
        assert not self.waiting, "overtaken"
        self.granted(who, address)
        return who

    @rule(who=pods)
    def delete(self, who: AttachmentKey) -> None:
        if who in self.waiting:
            self.waiting.remove(who)
            self.pool.leave(who)
        for address in [a for a, holder in self.holders.items() if holder == who]:
            self.pool.release(address, self.now)
            del self.holders[address]
            self.released[address] = self.now
        self.served()

    @rule(listed=st.sets(st.sampled_from(UNITS), min_size=1), data=st.data())
    def operator_lists(self, listed: set[str], data: st.DataObject) -> None:
        self.listed = tuple(sorted(listed))
        self.releasing = tuple(data.draw(st.sets(st.sampled_from(self.listed)))) if listed else ()
        self.pool.supply([interface(*self.listed, releasing=self.releasing)])
        self.served()

    @rule()
    def node_withdraws(self) -> None:
        units = self.pool.withdrawable(self.now)
        for unit in units:
            assert unit in self.releasing
            assert not any(a in self.holders for a in expand(unit)), "promised while held"
        self.pool.withdraw(units)
        self.promised.update(units)

    @rule()
    def node_reinstates(self) -> None:
        units = self.pool.returning()
        assert not set(units) & set(self.releasing)
        self.pool.reinstate(units)
        self.promised.difference_update(units)
        self.served()

    @rule(seconds=st.floats(0, 2 * COOLDOWN))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.served()

    @rule()
    def restart(self) -> None:
        """What the ledger remembers is enough. Whoever waited asks again."""
        self.waiting.clear()
        self.pool = Pool(COOLDOWN)
        self.pool.restore(self.holders, self.released, self.promised)
        if self.listed:
            self.pool.supply([interface(*self.listed, releasing=self.releasing)])

    @rule(target=pods)
    def nobody(self) -> Any:
        return multiple()

    @invariant()
    def nothing_is_lost(self) -> None:
        usage = self.pool.usage(self.now)
        listed = {a for unit in self.listed for a in expand(unit)}
        blocked = {a for unit in (*self.releasing, *self.promised) for a in expand(unit)}
        idle = listed - set(self.holders)
        cooling = {a for a in idle if a in self.released and self.now - self.released[a] < COOLDOWN}
        assert usage == Usage(
            assigned=len(self.holders),
            cooling=len(cooling),
            free=len(idle - cooling - blocked),
            waiting=len(self.waiting),
        )
        assert set(self.pool.released()) == self.promised & set(self.releasing)

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        if self.waiting:
            assert self.pool.usage(self.now).free == 0


TestPoolAgainstModel = PoolAgainstModel.TestCase
TestPoolAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
