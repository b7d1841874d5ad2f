"""Reconciles one area of the host's state: reads the present state and corrects the difference to the desired one.

Blocking, without a thread of its own: the host reconciler calls `look` for one area after the other. The kernel's state
is compared anew every time; only nft's listing of the table loaded last is remembered (a new process loads it again).
Only objects with our mark are changed: the table `vnetpods`, rules and routes with protocol 118, `azv…` links with our
alias, and, among addresses, the pool's.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vnetpods_agent.attachment import HOST_PREFIX, Address, mac
from vnetpods_agent.dataplane import DataPlaneError, HostState, kernel_facts
from vnetpods_agent.dataplane.host import addresses, firewall, forwarding, routing
from vnetpods_agent.dataplane.host.addresses import Found
from vnetpods_agent.dataplane.host.ruleset import deletion, families, ruleset
from vnetpods_agent.dataplane.host.tools import ProgramFailed, output
from vnetpods_agent.dataplane.kernel_facts import Uplink
from vnetpods_agent.dataplane.names import TABLE
from vnetpods_agent.dataplane.netlink import messages as rt
from vnetpods_agent.dataplane.netlink import tables
from vnetpods_agent.dataplane.netlink.monitor import Area
from vnetpods_agent.dataplane.netlink.socket import NetlinkRequest, NetlinkSocket
from vnetpods_agent.dataplane.pod import host_veth
from vnetpods_kit.wording import some

ADDRESS_TAKEN = "AddressTakenFromHost"
ADDRESS_ON_HOST = "AddressOnHost"
RESTORED = "HostStateRestored"
NIC_MISSING = "NicMissing"

SYSCTL = Path("/proc/sys/net")
"""The kernel's network settings. A container's own are read-only, so the chart mounts the host's elsewhere."""
_THERE = frozenset({errno.EEXIST})
_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})
_ADVICE = (
    "the node must not hold pods' addresses; with cloud-init set apply_network_config_for_secondary_ips: false"
    " (datasource Azure)"
)


@dataclass(frozen=True, slots=True)
class Change:
    """A correction, or a problem that needs a person; worth an Event."""

    kind: str
    message: str


class HostActions:
    """Reads and corrects the host's state; belongs to the host reconciler's thread."""

    def __init__(self, sysctl: Path = SYSCTL) -> None:
        self._sysctl = sysctl
        self._ipv4 = sysctl / "ipv4"
        self._route = NetlinkSocket()
        self._loaded = ""
        self._listing = ""
        self._routed: tuple[list[rt.Rule], list[rt.Route]] = ([], [])
        self.held_by_host: frozenset[Address] = frozenset()

    def close(self) -> None:
        self._route.close()

    def look(self, area: Area, state: HostState) -> list[Change]:
        """Corrects one area; returns corrections of what had been right before, and problems that it can't correct.

        Raises DataPlaneError, OSError.
        """
        looks: dict[Area, Callable[[HostState], list[Change]]] = {
            Area.ADDRESSES: self._addresses,
            Area.SETTINGS: self._settings,
            Area.ROUTING: self._routing,
            Area.RULESET: self._ruleset,
            Area.FORWARDING: lambda _: _forwarding(forwarding.NFT),
            Area.LEGACY_FORWARDING: lambda _: _forwarding(forwarding.LEGACY),
            Area.FIREWALL: self._firewall,
            Area.PODS: lambda _: self._pods(),
        }
        return looks[area](state)

    def _uplinks(self, state: HostState) -> tuple[list[Uplink], list[rt.Link], list[rt.Route]]:
        """The pool's uplinks, all links, and the routes of main."""
        links = kernel_facts.links(self._route)
        found = kernel_facts.uplinks(state.nics, links, tables.addresses(self._route))
        return found, links, tables.routes(self._route)

    def _addresses(self, state: HostState) -> list[Change]:
        """Removes pods' addresses from the host, which would itself answer for them. See `addresses`."""
        links, held = kernel_facts.links(self._route), tables.addresses(self._route)
        uplinks = kernel_facts.uplinks(state.nics, links, held)
        taken: list[str] = []
        staying: list[Found] = []
        for found in addresses.found(uplinks, links, held, tables.routes(self._route)):
            address, name = found.held.address, found.interface
            stays = found.stays or ("" if state.take_from_host else f"takeFromHost is off; {_ADVICE}")
            if not stays and not _keeps_the_others(self._ipv4 / "conf", name):
                stays = f"net.ipv4.conf.{name}.promote_secondaries can't be set, so others would go with it; {_ADVICE}"
            if stays:
                staying.append(replace(found, stays=stays))
                continue
            # ip addr del 10.0.0.7/24 dev eth0
            removal = tables.address_removal(found.held)
            self._route.execute([NetlinkRequest(f"remove from {name}", address, removal, _GONE)])
            taken.append(f"{address} ({name})")
        self.held_by_host = frozenset(Address(found.held.address) for found in staying)
        happenings = [
            Change(
                ADDRESS_ON_HOST, f"of the pool, but on the node's interfaces, so no pod gets it: {some(these)}: {why}"
            )
            for why in dict.fromkeys(found.stays for found in staying)
            if (these := [f"{found.held.address} ({found.interface})" for found in staying if found.stays == why])
        ]
        if taken:
            happenings.append(Change(ADDRESS_TAKEN, f"removed from the node's interfaces: {some(taken)}; {_ADVICE}"))
        return happenings

    def _settings(self, state: HostState) -> list[Change]:
        uplinks, links, routes = self._uplinks(state)
        routers = {uplink.link.index for uplink in uplinks} | (
            {routing.default_interface(routes)} if uplinks else set()
        )
        names = [link.name for link in links if link.index in routers]
        wanted = {self._ipv4 / "ip_forward": "1"}
        for name in names:
            conf = self._ipv4 / "conf" / name
            wanted[conf / "forwarding"] = "1"
            # The higher of the two values counts; strict (1) drops packets from a NIC other than the replies' way out
            if _read(conf / "rp_filter") != "2" and "1" in {
                _read(conf / "rp_filter"),
                _read(self._ipv4 / "conf/all/rp_filter"),
            }:
                wanted[conf / "rp_filter"] = "2"
        found = {uplink.nic.mac for uplink in uplinks}
        happenings = [
            Change(NIC_MISSING, f"no interface of this machine has the MAC {nic.mac} of the pool's NIC")
            for nic in state.nics
            if nic.mac not in found
        ]
        for path, value in wanted.items():
            if _read(path) != value:
                path.write_text(value)
                happenings.append(Change(RESTORED, f"set {path.relative_to(self._sysctl)} to {value}"))
        return happenings

    def _routing(self, state: HostState) -> list[Change]:
        uplinks, links, main = self._uplinks(state)
        direct = _direct(state, uplinks, links, main)
        astray = routing.leads_astray(uplinks, direct, main)
        rules, routes = routing.wanted(uplinks, direct, astray=astray)
        ours = [rule for rule in tables.rules(self._route) if rule.protocol == rt.PROTOCOL]
        if not rules and not ours:
            return []
        there = [route for table in routing.TABLES for route in tables.routes(self._route, f"table {table}", table)]
        steps = [
            NetlinkRequest("add a rule for", f"mark {rule.mark:#x}", rt.rule_add(rule), _THERE)
            for rule in rules
            if rule not in ours
        ]
        steps += [
            NetlinkRequest("add to table", str(route.table), rt.route_add(route))
            for route in routes
            if route not in there
        ]
        added = len(steps)
        steps += [
            NetlinkRequest("delete a rule for", f"mark {rule.mark:#x}", rt.rule_delete(rule), _GONE)
            for rule in ours
            if rule not in rules
        ]
        steps += [
            NetlinkRequest("delete from table", str(route.table), rt.route_delete(route), _GONE)
            for route in there
            if route not in routes
        ]
        if steps:
            self._route.execute(steps)
        known, self._routed = (rules, routes) == self._routed, (rules, routes)
        if not known or not added:
            return []
        return [Change(RESTORED, f"policy routing: {added} rules and routes were missing")]

    def _ruleset(self, state: HostState) -> list[Change]:
        """Loads the tables. While no NIC is known, an earlier process's tables serve pods better than new ones."""
        if not state.nics and not self._loaded and list_tables():
            return []
        uplinks, links, main = self._uplinks(state)
        astray = routing.leads_astray(uplinks, _direct(state, uplinks, links, main), main)
        there = replace(
            state, nics=tuple(uplink.nic for uplink in uplinks)
        )  # other NICs' addresses are another machine's
        text = ruleset(there, uplinks, astray=astray, ipv6=(SYSCTL / "ipv6").exists())
        known = text == self._loaded
        if known and list_tables() == self._listing:
            return []
        output("load the nftables tables", ["nft", "-f", "-"], text)
        self._loaded, self._listing = text, list_tables()
        return [Change(RESTORED, f"the nftables table {TABLE} was missing or changed")] if known else []

    def _firewall(self, state: HostState) -> list[Change]:
        uplinks, _, _ = self._uplinks(state)
        if uplinks:
            firewall.refused({uplink.link.name for uplink in uplinks})
        return []

    def _pods(self) -> list[Change]:
        """Repairs pods' host ends. Reads routes before links: so a pod detached in between shows as dying, not as one
        without route.

        If the NIC's MTU changes, the veth keeps its own: the pod's end isn't accessible from here, and a veth silently
        drops packets larger than the other end's MTU. Path MTU discovery covers a smaller NIC, with the host as the
        router that answers; new pods get the new MTU.
        """
        routes = tables.routes(self._route)
        neighbours = set(tables.neighbours(self._route))
        links = kernel_facts.links(self._route)
        ends = [(link, *owned) for link in links if host_veth.is_host_end(link) and (owned := host_veth.owner(link))]
        claims = Counter(address for _, _, address in ends)
        routed = {(route.destination, route.index) for route in routes if route.prefix == 32}
        happenings = self._stale(routes, links)
        for link, key, address in ends:
            pod_mac, host_mac = mac("pod", key), mac("host", key)
            steps: list[NetlinkRequest] = []
            if link.mac != host_mac:
                steps.append(
                    NetlinkRequest(
                        "restore the MAC of", link.name, rt.link_set(link.index, rt.link_mac(host_mac)), _GONE
                    )
                )
            if not link.up:
                steps.append(NetlinkRequest("bring up", link.name, rt.link_set(link.index, up=True), _GONE))
            if link.arp:  # also ends of earlier versions; the kernel drops the link's neighbours with this
                steps.append(NetlinkRequest("make deaf to ARP", link.name, rt.link_set(link.index, arp=False), _GONE))
            if link.lacks(host_veth.SETTINGS):
                settings = rt.link_set(link.index, rt.link_settings(host_veth.SETTINGS))
                steps.append(NetlinkRequest("restore the settings of", link.name, settings, _GONE))
            if link.arp or tables.Neighbour(link.index, address, pod_mac) not in neighbours:
                steps.append(
                    NetlinkRequest(
                        "add the neighbour of", address, rt.neighbour_add(address, pod_mac, link.index), _GONE
                    )
                )
            if (address, link.index) not in routed and claims[address] == 1:
                steps.append(
                    NetlinkRequest("add the route to", address, rt.route_add(rt.Route(address, 32, link.index)), _GONE)
                )
            if steps:
                self._route.execute(steps)
                done = ", ".join(step.what for step in steps)
                happenings.append(Change(RESTORED, f"{link.name} of {key} with {address}: {done}"))
        return happenings

    def _stale(self, routes: Sequence[rt.Route], links: Sequence[rt.Link]) -> list[Change]:
        """Deletes our host routes that lead to no host end, or to one whose alias has another address.

        An end without alias is being created (or deleted); its route is left alone.
        """
        ends = {link.index: link for link in links if link.name.startswith(HOST_PREFIX)}
        stale = []
        for route in routes:
            if route.protocol != rt.PROTOCOL or route.prefix != 32:
                continue
            link = ends.get(route.index)
            owned = host_veth.owner(link) if link else None
            if link is None or (owned and owned[1] != route.destination):
                stale.append(route)
        if stale:
            self._route.execute(
                [NetlinkRequest("delete the route to", r.destination, rt.route_delete(r), _GONE) for r in stale]
            )
        return [Change(RESTORED, f"deleted the stale route to {route.destination}") for route in stale]

    def uninstall(self) -> list[str]:
        """Removes everything of ours, unless pods still depend on it; returns what stays and why."""
        left = [link.name for link in kernel_facts.links(self._route) if host_veth.is_host_end(link)]
        if left:
            who = some(sorted(left))
            return [f"{len(left)} pods still run on addresses of the VNet ({who}): what they need stays until they go"]
        self._routing(HostState((), ()))
        forwarding.close()
        output("delete the nftables tables", ["nft", "-f", "-"], deletion(ipv6=(SYSCTL / "ipv6").exists()))
        self._loaded = self._listing = ""
        return []


def _forwarding(variant: str) -> list[Change]:
    if forwarding.open_for_pods(variant):
        return [Change(RESTORED, f"the FORWARD policy of {variant} is DROP: opened it for pods")]
    return []


def list_tables() -> str:
    """The present listing of our tables by nft, without counters; empty if one is missing."""
    try:
        return "".join(
            output("list the nftables table", ["nft", "-s", "list", "table", family, TABLE])
            for family in families(ipv6=(SYSCTL / "ipv6").exists())
        )
    except ProgramFailed as error:
        if error.errno != errno.EIO:
            raise
        return ""


def tables_are_there() -> bool:
    try:
        return bool(list_tables())
    except DataPlaneError:  # no nft
        return False


def _keeps_the_others(conf: Path, name: str) -> bool:
    """Sets promote_secondaries: otherwise deleting a subnet's first address deletes later ones, even the primary."""
    own, general = conf / name / "promote_secondaries", conf / "all" / "promote_secondaries"
    if "1" not in {_read(own), _read(general)}:
        try:
            own.write_text("1")
        except OSError:
            return False
    return True


def _direct(
    state: HostState, uplinks: Sequence[Uplink], links: Sequence[rt.Link], main: Sequence[rt.Route]
) -> list[str]:
    return routing.beyond_bridges(state.direct, uplinks, links, main) if state.guessed else list(state.direct)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:  # the interface just disappeared
        return ""
