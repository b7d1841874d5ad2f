"""A randomised life of NICs: the emulator against a small independent model, always the same 2,000 steps.

`python -m tests.azure.test_nic_machine` (in `make fuzz`) takes 20,000 other ones each time. The model is deliberately
naive (sets of integers, everything recomputed each time) and shares no code with the emulator.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.azure.arm.admin import Admin
from tests.azure.arm.builder import Builder
from tests.azure.arm.clock import VirtualClock
from tests.azure.arm.cloud import Cloud
from tests.azure.arm.requests import Request

SUBNETS = {"a": ipaddress.IPv4Network("10.0.0.0/27"), "b": ipaddress.IPv4Network("10.0.1.0/26")}
NICS = ("n0", "n1", "n2", "n3")
NAMES = ("c0", "c1", "c2", "c3", "c4")
NIC = "Microsoft.Network/networkInterfaces"

Wish = tuple[str, str | int]
"""(configuration, "dynamic" | "block" | last octet of a static address)."""


@dataclass
class Nic:
    subnet: str
    addresses: dict[str, list[int]] = field(default_factory=dict)
    attached: bool = False


class Model:
    """The service's promises, as plainly as possible."""

    def __init__(self) -> None:
        self.nics: dict[str, Nic] = {}

    def put(self, name: str, subnet: str, wishes: list[Wish]) -> str:
        """Returns the refusal's code, or an empty string."""
        old = self.nics.get(name)
        kept = old.addresses if old is not None and old.subnet == subnet else {}
        others = {a for other, nic in self.nics.items() if other != name and nic.subnet == subnet for a in all_of(nic)}
        if wishes[0][1] == "block":
            return "PrimaryIpConfigurationCannotHavePrefixLength"
        network = SUBNETS[subnet]
        usable = set(range(int(network[4]), int(network[-1])))
        got: dict[str, list[int]] = {}
        first = [w for w in wishes if isinstance(w[1], int) or w[0] in kept]
        for configuration, wish in first + [w for w in wishes if w not in first]:
            mine = {a for addresses in got.values() for a in addresses}
            if isinstance(wish, int):
                address = int(network[0]) + wish
                if address not in usable:
                    return "PrivateIPAddressInReservedRange"
                if address in others | mine:
                    return "PrivateIPAddressIsAllocated"
                got[configuration] = [address]
                continue
            size = 16 if wish == "block" else 1
            held = kept.get(configuration, [])
            if len(held) == size and not mine & set(held):
                got[configuration] = held
                continue
            found = self._lowest(network, usable - others - mine - {a for had in kept.values() for a in had}, size)
            if not found:
                return "SubnetIsFull"
            got[configuration] = found
        self.nics[name] = Nic(subnet, got, old.attached if old else False)
        return ""

    def _lowest(self, network: ipaddress.IPv4Network, free: set[int], size: int) -> list[int]:
        starts = range(int(network[0]), int(network[-1]), size)
        fitting = (list(range(start, start + size)) for start in starts if set(range(start, start + size)) <= free)
        return next(fitting, [])

    def delete(self, name: str) -> str:
        if name in self.nics and self.nics[name].attached:
            return "NicInUse"
        self.nics.pop(name, None)
        return ""


def all_of(nic: Nic) -> set[int]:
    return {address for addresses in nic.addresses.values() for address in addresses}


wish = st.one_of(st.just("dynamic"), st.just("block"), st.integers(0, 31))
wishes = st.lists(st.tuples(st.sampled_from(NAMES), wish), min_size=1, max_size=5, unique_by=lambda wish: wish[0])


class Life(RuleBasedStateMachine):
    """Runs the same steps on emulator and model."""

    def __init__(self) -> None:
        super().__init__()
        self.cloud = Cloud()
        self.clock = VirtualClock()
        self.build = Builder(Admin(self.cloud, self.clock).call)
        self.build.create_vnet("net", "10.0.0.0/16")
        for name, network in SUBNETS.items():
            self.build.create_subnet("net", name, str(network))
        self.model = Model()
        self.etags: dict[str, str] = {}

    def ask(self, method: str, name: str, body: Any = None, **headers: str) -> tuple[int, str, Any]:
        path = self.build.id(NIC, name)
        request = Request(method, path, {"api-version": "2024-01-01"}, headers, body, "someone")
        reply = self.cloud.handle(request, self.clock.now())
        code = reply.body["error"]["code"] if reply.status >= 400 else ""
        return reply.status, code, reply.body

    def body(self, subnet: str, wanted: list[Wish]) -> dict[str, Any]:
        reference = {"id": self.build.id("Microsoft.Network/virtualNetworks/subnets", f"net/{subnet}")}
        parts = []
        for number, (configuration, wish) in enumerate(wanted):
            inner: dict[str, Any] = {"subnet": reference, "primary": number == 0}
            if isinstance(wish, int):
                text = str(ipaddress.IPv4Address(int(SUBNETS[subnet][0]) + wish))
                inner |= {"privateIPAllocationMethod": "Static", "privateIPAddress": text}
            elif wish == "block":
                inner["privateIPAddressPrefixLength"] = 28
            parts.append({"name": configuration, "properties": inner})
        return {"location": "westeurope", "properties": {"ipConfigurations": parts}}

    @rule(name=st.sampled_from(NICS), subnet=st.sampled_from(sorted(SUBNETS)), wanted=wishes)
    def put(self, name: str, subnet: str, wanted: list[Wish]) -> None:
        known = name in self.model.nics
        expected = self.model.put(name, subnet, wanted)
        status, code, _ = self.ask("PUT", name, self.body(subnet, wanted))
        assert code == expected
        assert status == (400 if expected else 200 if known else 201)

    def one(self, number: int) -> str:
        """The name of an existing NIC."""
        return sorted(self.model.nics)[number % len(self.model.nics)]

    @precondition(lambda self: self.model.nics)
    @rule(number=st.integers(0, 3), more=st.integers(1, 8))
    def grow_as_the_operator_does(self, number: int, more: int) -> None:
        """GET, append, PUT with If-Match."""
        name = self.one(number)
        _, _, body = self.ask("GET", name)
        nic = self.model.nics[name]
        parts = body["properties"]["ipConfigurations"]
        names = [f"vnetpods-{number}" for number in range(len(parts), len(parts) + more)]
        names = [new for new in names if new not in nic.addresses]
        added = [{"name": new, "properties": {"subnet": parts[0]["properties"]["subnet"]}} for new in names]
        whole = {**body, "properties": {**body["properties"], "ipConfigurations": [*parts, *added]}}
        before: list[Wish] = []
        for part in parts:
            static = part["properties"]["privateIPAllocationMethod"] == "Static"
            address = nic.addresses[part["name"]]
            wish: str | int = address[0] - int(SUBNETS[nic.subnet][0]) if static else "dynamic"
            before.append((part["name"], "block" if len(address) > 1 else wish))
        expected = self.model.put(name, nic.subnet, [*before, *((new, "dynamic") for new in names)])
        _, code, _ = self.ask("PUT", name, whole, **{"if-match": body["etag"]})
        assert code == expected

    @precondition(lambda self: self.model.nics)
    @rule(number=st.integers(0, 3))
    def write_with_a_stale_etag(self, number: int) -> None:
        name = self.one(number)
        status, _, body = self.ask("GET", name)
        if status == 200 and self.etags.get(name, body["etag"]) != body["etag"]:
            _, code, _ = self.ask("PUT", name, body, **{"if-match": self.etags[name]})
            assert code == "PreconditionFailed"
        self.etags[name] = body.get("etag", "none")

    @precondition(lambda self: len(self.model.nics) > 1)
    @rule(number=st.integers(0, 3))
    def delete(self, number: int) -> None:
        name = self.one(number)
        expected = self.model.delete(name)
        assert self.ask("DELETE", name)[1] == expected

    @precondition(lambda self: self.model.nics)
    @rule(number=st.integers(0, 3))
    def attach_or_detach(self, number: int) -> None:
        name = self.one(number)
        nic = self.model.nics[name]
        if nic.attached:
            self.build.delete("Microsoft.Compute/virtualMachines", f"vm-{name}")
        else:
            self.build.create_vm(f"vm-{name}", nics=[name])
        nic.attached = not nic.attached

    @invariant()
    def both_agree(self) -> None:
        shown = {}
        for resource in self.cloud.store.of_kind(NIC):
            parts = resource.properties["ipConfigurations"]
            shown[resource.id.name] = {
                part["name"]: [
                    int(a) for a in ipaddress.IPv4Network(part["properties"]["privateIPAddress"], strict=False)
                ]
                for part in parts
            }
        assert shown == {name: nic.addresses for name, nic in self.model.nics.items()}
        for subnet in SUBNETS:
            key = self.build.id("Microsoft.Network/virtualNetworks/subnets", f"net/{subnet}").lower()
            held = [nic for nic in self.model.nics.values() if nic.subnet == subnet]
            assert set(self.cloud.spaces[key].taken) == {address for nic in held for address in all_of(nic)}


def live(lives: int, *, same: bool) -> None:
    """Lives of 100 steps each: the `same` as in every run, or new ones. Raises at a difference, with steps to it."""
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=lives,
            stateful_step_count=100,
            deadline=None,
            database=None,
            derandomize=same,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_difference_in_2_000_steps() -> None:
    live(20, same=True)


if __name__ == "__main__":
    live(200, same=False)
    print("NICs: 200 lives, no difference")
