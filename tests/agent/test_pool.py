from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from vnetpods_agent.attachment import Address, AttachmentKey, expand
from vnetpods_agent.ipam.pool import ANY, Pool, Wish
from vnetpods_api import Interface, Usage

COOLDOWN = 30.0
NOW = 1_000_000.0


def interface(
    *addresses: str,
    releasing: tuple[str, ...] = (),
    primary: str = "10.0.0.4",
    name: str = "nic",
    names: Mapping[str, str] | None = None,
) -> Interface:
    """`names` of ipConfigurations where they matter: an empty mapping is a list without any."""
    return Interface(
        name=name,
        mac=f"00:0d:3a:00:00:{len(name):02x}",
        subnet="s",
        primary_address=primary,
        addresses=addresses,
        ip_configurations=() if names == {} else tuple((names or {}).get(a, named(a)) for a in addresses),
        releasing=releasing,
    )


def named(unit: str, life: int = 1) -> str:
    return f"vnetpods-{unit}-{life}"


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
        made.restore({}, {Address("10.0.0.6"): 0.0, Address("10.0.0.5"): 0.0}, {}, {})  # before the boot
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

    def test_is_not_shortened_by_who_asks_with_an_older_time(self) -> None:
        """A report that took seconds to be delivered asks what comes next with the time at which it began."""
        made = pool("10.0.0.5")
        made.take(key("a"), NOW)
        made.release(Address("10.0.0.5"), NOW)
        before = NOW - 20
        assert made.next_change(before) == NOW + COOLDOWN
        assert made.usage(before).cooling == 1
        assert (made.retirable(before), made.cold(before)) == ([], [])
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


class TestWish:
    def test_one_of_a_network_or_none(self) -> None:
        made = pool("10.0.0.5", "10.1.0.5")
        assert made.take(key("a"), NOW, Wish("10.1.0.0/16")) == "10.1.0.5"
        assert made.take(key("b"), NOW, Wish("10.1.0.0/16")) is None
        assert made.take(key("c"), NOW) is None
        assert made.serve(NOW) == [(key("c"), "10.0.0.5")], "who waits for something else is in nobody's way"
        made.release(Address("10.1.0.5"), NOW)
        assert made.serve(NOW + COOLDOWN) == [(key("b"), "10.1.0.5")]

    def test_one_that_is_named_needs_no_cool_down(self) -> None:
        made = pool("10.0.0.5", "10.0.0.6")
        made.take(key("a"), NOW)
        made.release(Address("10.0.0.5"), NOW)
        assert made.take(key("b"), NOW, Wish(address=Address("10.0.0.5"))) == "10.0.0.5"
        assert made.take(key("c"), NOW) == "10.0.0.6"

    def test_one_that_is_named_waits_until_its_former_interface_is_gone(self) -> None:
        leaving = {Address("10.0.0.5")}
        made = Pool(COOLDOWN, leaving=lambda: leaving)
        made.supply([interface("10.0.0.5", "10.0.0.6")])
        assert made.take(key("a"), NOW, Wish(address=Address("10.0.0.5"))) is None
        leaving.clear()
        assert made.serve(NOW) == [(key("a"), "10.0.0.5")]

    def test_naming_what_is_asked_back_is_no_way_to_get_it(self) -> None:
        made = pool()
        made.supply([interface("10.0.0.5", releasing=("10.0.0.5",))])
        assert made.take(key("a"), NOW, Wish(address=Address("10.0.0.5"))) is None

    @pytest.mark.parametrize(("address", "why"), [("10.0.0.5", "in use, by a/eth0"), ("10.0.0.9", "none of")])
    def test_when_waiting_is_no_use(self, address: str, why: str) -> None:
        made = pool("10.0.0.5", "10.0.0.6")
        made.take(key("a"), NOW)
        assert why in made.hopeless(Wish(address=Address(address)))
        assert made.hopeless(Wish(address=Address("10.0.0.6"))) == made.hopeless(Wish("10.9.0.0/16")) == ""


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
        assert (made.retirable(NOW), made.kept()) == ([], ("10.0.0.16/28",))
        made.release(taken, NOW)
        assert made.kept() == ()
        assert made.retirable(NOW + COOLDOWN - 1) == []
        assert made.retirable(NOW + COOLDOWN) == [(named("10.0.0.16/28"), "10.0.0.16/28")]

    def test_a_unit_goes_only_when_its_former_pods_have_left_the_kernel(self) -> None:
        """Also without any cool-down. What the host itself holds may go."""
        leaving = {Address("10.0.0.20")}
        made = Pool(0.0, lambda: frozenset({Address("10.0.0.21")}), lambda: leaving)
        made.supply([interface("10.0.0.16/28", releasing=("10.0.0.16/28",))])
        assert made.retirable(NOW) == []
        leaving.clear()
        assert made.retirable(NOW) == [(named("10.0.0.16/28"), "10.0.0.16/28")]

    def test_what_is_retired_is_reported_as_long_as_it_is_listed_asked_for_or_not(self) -> None:
        made = pool()
        made.supply([interface("10.0.0.5", "10.0.0.6", releasing=("10.0.0.5",))])
        made.retire([FIVE])
        assert made.released() == ("10.0.0.5",)
        made.supply([interface("10.0.0.5")])  # cancelled, too late
        assert (made.released(), made.take(key("a"), NOW)) == (("10.0.0.5",), None)
        made.supply([interface("10.0.0.6")])
        assert made.released() == ()
        made.supply([interface("10.0.0.5")])  # an old list
        assert (made.released(), made.serve(NOW)) == (("10.0.0.5",), [])

    def test_the_same_address_under_another_name_is_usable_at_once(self) -> None:
        made = pool("10.0.0.5")
        made.retire([FIVE])
        made.supply([interface("10.0.0.5", names={"10.0.0.5": named("10.0.0.5", 2)})])
        assert made.released() == ()
        assert made.take(key("a"), NOW) == "10.0.0.5"

    def test_retired_is_remembered_whatever_the_source_lists(self) -> None:
        """ACN PR#2022: marked for release, the node restarts, the address comes back as available."""
        made = Pool(COOLDOWN)
        made.restore({}, {}, {}, {FIVE[0]: FIVE[1]})
        made.supply([interface("10.0.0.5")])
        assert made.take(key("a"), NOW) is None

    def test_what_the_ledger_refused_to_retire_is_usable(self) -> None:
        made = pool("10.0.0.5")
        made.retire([FIVE])
        made.unretire([FIVE])
        assert made.take(key("a"), NOW) == "10.0.0.5"

    @pytest.mark.parametrize(
        "names",
        [pytest.param({}, id="no-names"), pytest.param({"10.0.0.5": "terraform-5"}, id="somebody-elses")],
    )
    def test_only_what_the_operator_named_is_released(self, names: Mapping[str, str]) -> None:
        made = pool()
        made.supply([interface("10.0.0.5", releasing=("10.0.0.5",), names=names)])
        assert (made.retirable(NOW), made.kept(), made.take(key("a"), NOW)) == ([], (), None)

    def test_what_this_machine_has_no_nic_for_is_neither_released_nor_kept(self) -> None:
        there = interface("10.0.0.5", "10.0.0.6", "10.0.0.7", releasing=("10.0.0.5", "10.0.0.6", "10.0.0.7"))
        absent: list[str] = []
        made = Pool(COOLDOWN, absent=lambda: absent)
        made.supply([there])
        made.retire([FIVE])
        made.adopt(Address("10.0.0.6"), key("a"))
        assert (made.released(), made.kept(), len(made.retirable(NOW))) == (("10.0.0.5",), ("10.0.0.6",), 1)
        absent.append(there.mac)
        assert (made.released(), made.kept(), made.retirable(NOW)) == ((), (), [])

    def test_what_a_pod_has_all_the_same_is_kept_until_it_ends(self) -> None:
        """A pod that was met with an address that is promised back: the pod is the fact."""
        made = pool()
        made.supply([interface("10.0.0.5", releasing=("10.0.0.5",))])
        made.retire([FIVE])
        made.adopt(Address("10.0.0.5"), key("a"))
        assert (made.released(), made.kept()) == ((), ("10.0.0.5",))
        assert made.settle() == ([], ["10.0.0.5"])
        made.release(Address("10.0.0.5"), NOW)
        assert (made.released(), made.settle()) == (("10.0.0.5",), ([FIVE], []))

    def test_an_answer_names_the_request_of_the_list_that_it_is_about(self) -> None:
        made = pool("10.0.0.5")
        assert made.request is None
        made.supply([interface("10.0.0.5", releasing=("10.0.0.5",))], "r1")
        made.supply([], "r2")
        assert made.request == "r1"


FIVE = (named("10.0.0.5"), "10.0.0.5")


class TestPromisedWithoutAName:
    """By a version of before, or to an operator of before."""

    def made(self) -> Pool:
        made = Pool(COOLDOWN)
        made.restore({}, {}, {"10.0.0.5": ""}, {})
        return made

    def test_is_out_of_use_as_long_as_it_is_listed_without(self) -> None:
        made = self.made()
        assert made.settle() == ([], [])
        made.supply([interface("10.0.0.5", names={})])
        assert made.settle() == ([], [])
        assert (made.take(key("a"), NOW), made.released(), made.retirable(NOW)) == (None, (), [])

    def test_is_forgotten_with_the_list_that_lacks_it(self) -> None:
        made = self.made()
        made.supply([interface("10.0.0.6", names={})])
        assert made.settle() == ([], ["10.0.0.5"])
        made.supply([interface("10.0.0.5", names={})])
        assert made.take(key("a"), NOW) == "10.0.0.5"

    def test_is_retired_once_it_has_a_name(self) -> None:
        made = self.made()
        made.supply([interface("10.0.0.5")])
        assert made.take(key("a"), NOW) is None
        assert made.retirable(NOW) == [FIVE]
        made.retire([FIVE])
        assert made.released() == ("10.0.0.5",)

    def test_is_usable_under_a_name_that_is_not_the_operators(self) -> None:
        made = self.made()
        made.supply([interface("10.0.0.5", names={"10.0.0.5": "terraform-5"})])
        assert made.settle() == ([], ["10.0.0.5"])
        assert made.take(key("a"), NOW) == "10.0.0.5"


class TestLedgerForFormerVersions:
    def test_learns_what_is_listed_and_promised(self) -> None:
        made = pool("10.0.0.5", "10.0.0.6")
        made.retire([FIVE])
        assert made.settle() == ([], [])  # the ledger had it together with the name
        made.supply([interface("10.0.0.6")])
        assert made.settle() == ([], ["10.0.0.5"])
        made.supply([interface("10.0.0.5")])  # an old list
        assert made.settle() == ([FIVE], [])
        made.supply([interface("10.0.0.5", names={"10.0.0.5": "vnetpods-new"})])
        assert made.settle() == ([], ["10.0.0.5"])

    def test_what_the_source_remembers_of_a_lost_ledger_is_believed(self) -> None:
        made = pool()
        listed = [interface("10.0.0.5", "10.0.0.7"), interface("10.0.1.5", name="other", names={})]
        made.adopt(Address("10.0.0.7"), key("a"))
        assert made.believe(listed, ["10.0.0.5", "10.0.0.7", "10.0.1.5", "10.0.0.99"]) == [FIVE, ("", "10.0.1.5")]
        made.supply(listed)
        assert (made.released(), made.take(key("b"), NOW)) == (("10.0.0.5",), None)
        assert made.believe(listed, ["10.0.0.5", "10.0.1.5"]) == []


class TestBlocks:
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
        made.restore({Address("10.0.0.5"): key("a")}, {}, {}, {})
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


WISHES = (ANY, ANY, Wish("10.0.0.4/30"), Wish("10.0.0.16/29"), Wish(address=Address("10.0.0.6")))
UNITS = ("10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8", "10.0.0.16/28")


class PoolAgainstModel(RuleBasedStateMachine):
    """Any order of operator's and pods' doings. The model knows who holds what and what was promised back."""

    pods = Bundle("pods")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(COOLDOWN)
        self.now = NOW
        self.callers = (f"p{n}" for n in itertools.count())
        self.holders: dict[Address, AttachmentKey] = {}
        self.waiting: dict[AttachmentKey, Wish] = {}  # in the order of arrival
        self.released: dict[Address, float] = {}
        self.listed: tuple[str, ...] = ()
        self.releasing: tuple[str, ...] = ()
        self.lives: dict[str, int] = {}
        self.promised: dict[str, str] = {}  # name -> unit
        self.names_of: dict[str, str] = {}

    def granted(self, who: AttachmentKey, address: Address, wish: Wish = ANY) -> None:
        assert wish.fits(address), "not what was asked for"
        assert wish.address in (None, address), "not the one that was named"
        assert address not in self.holders, "given twice"
        assert address in {a for unit in self.listed for a in expand(unit)}, "not on the NIC"
        blocked = {a for unit in (*self.releasing, *self.out()) for a in expand(unit)}
        assert address not in blocked, "asked back or promised"
        assert wish.address or self.now - self.released.get(address, 0) >= COOLDOWN, "still cooling"
        self.holders[address] = who

    def out(self) -> set[str]:
        """Listed units that were promised back."""
        return {unit for unit, name in self.names_of.items() if name in self.promised}

    def lists(self) -> None:
        self.pool.supply([interface(*self.listed, releasing=self.releasing, names=self.names_of)])
        self.pool.settle()

    def served(self) -> None:
        for who, address in self.pool.serve(self.now):
            wish = self.waiting[who]
            sooner = set(list(self.waiting.values())[: list(self.waiting).index(who)])
            assert wish not in sooner, "out of turn"
            assert wish.address or ANY not in sooner, "what anybody could have used"
            del self.waiting[who]
            self.granted(who, address, wish)

    @rule(target=pods, wish=st.sampled_from(WISHES))
    def add(self, wish: Wish) -> Any:
        who = key(next(self.callers))
        if self.pool.hopeless(wish):
            assert wish.address in self.holders or wish.address not in {a for u in self.listed for a in expand(u)}
            return multiple()
        address = self.pool.take(who, self.now, wish)
        if address is None:
            self.waiting[who] = wish
            self.served()  # as whoever waits does
            return who
        assert not self.waiting, "overtaken"
        self.granted(who, address, wish)
        return who

    @rule(who=pods)
    def delete(self, who: AttachmentKey) -> None:
        if who in self.waiting:
            del self.waiting[who]
            self.pool.leave(who)
        for address in [a for a, holder in self.holders.items() if holder == who]:
            self.pool.release(address, self.now)
            del self.holders[address]
            self.released[address] = self.now
        self.served()

    @rule(listed=st.sets(st.sampled_from(UNITS), min_size=1), data=st.data())
    def operator_lists(self, listed: set[str], data: st.DataObject) -> None:
        """Some of it by the name that it has had last, some by a new one, and any of it an old list's."""
        self.listed = tuple(sorted(listed))
        self.releasing = tuple(data.draw(st.sets(st.sampled_from(self.listed)))) if listed else ()
        for unit in data.draw(st.sets(st.sampled_from(self.listed))):
            self.lives[unit] = data.draw(st.integers(1, self.lives.get(unit, 1) + 1))
        self.names_of = {unit: named(unit, self.lives.get(unit, 1)) for unit in self.listed}
        self.lists()
        self.served()

    @rule(refused=st.booleans())
    def node_retires(self, refused: bool) -> None:
        entries = self.pool.retirable(self.now)
        for name, unit in entries:
            assert unit in self.releasing
            assert name == self.names_of[unit]
            assert not any(a in self.holders for a in expand(unit)), "promised while held"
        self.pool.retire(entries)
        if refused:
            self.pool.unretire(entries)
            self.served()
        else:
            self.promised.update(entries)

    @rule(seconds=st.floats(0, 2 * COOLDOWN))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.served()

    @rule()
    def restart(self) -> None:
        """What the ledger remembers is enough. Whoever waited asks again."""
        self.waiting.clear()
        self.pool = Pool(COOLDOWN)
        self.pool.restore(self.holders, self.released, {}, self.promised)
        if self.listed:
            self.lists()

    @rule(target=pods)
    def nobody(self) -> Any:
        return multiple()

    @invariant()
    def nothing_is_lost(self) -> None:
        usage = self.pool.usage(self.now)
        listed = {a for unit in self.listed for a in expand(unit)}
        blocked = {a for unit in (*self.releasing, *self.out()) for a in expand(unit)}
        idle = listed - set(self.holders)
        cooling = {a for a in idle if a in self.released and self.now - self.released[a] < COOLDOWN}
        assert usage == Usage(
            assigned=len(self.holders),
            cooling=len(cooling),
            free=len(idle - cooling - blocked),
            waiting=len(self.waiting),
        )
        held = {unit for unit in self.listed if any(a in self.holders for a in expand(unit))}
        assert set(self.pool.released()) == self.out() - held
        assert set(self.pool.kept()) == set(self.releasing) & held

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        if ANY in self.waiting.values():
            assert self.pool.usage(self.now).free == 0


TestPoolAgainstModel = PoolAgainstModel.TestCase
TestPoolAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
