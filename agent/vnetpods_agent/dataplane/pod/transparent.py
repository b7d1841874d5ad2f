"""The transparent data plane: every pod has its own point-to-point link, routed by the host.

End state of an attachment:
- host: veth `azv…` with its owner in the alias, MAC and MTU as in the row, up, no IPv6 address, ARP off (otherwise a
  sender that uses many addresses could fill the machine's neighbour table), with its own IPv4 settings and, for a pod
  without SNAT, in a group of its own (see `host_veth`);
- host: route ADDRESS/32 to it (protocol 118), permanent neighbour ADDRESS -> the pod end's MAC;
- pod: lo up; eth0 with MAC and MTU, up, ADDRESS/32; route to 169.254.1.1, default via it, permanent neighbour -> the
  host end's MAC.
The gateway 169.254.1.1 exists nowhere: the permanent neighbour lets the pod send to the host end without ARP.

If the runtime itself moves the pod's end and sets address and routes (Docker's), the end waits in the host's namespace,
and we only turn its ARP off, a setting that survives the move. Such an end sends everything to its own MAC, so the
host's end has the same one: a permanent neighbour wouldn't survive the move.

The veth is created with both MACs and with its peer already in the pod's namespace: a later move between namespaces
waits for rcu_barrier (a burst of 30 pods took 5 s instead of 0.75), and udev rewrites MACs that aren't set at creation.
The pod's side is configured through the netlink socket that the shim opened there, so CAP_NET_ADMIN is enough.

All methods are called from one thread, the kernel's, and keep no state but the reaper's: each reads the kernel's state
again, so they can be repeated after a crash at any step. Creation is one message (all or nothing) and makes everything
after it attributable (see `host_veth`); every later step replaces what it finds.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from vnetpods_agent.attachment import GSO_MAX_SIZE, Address, Attachment, AttachmentKey, SandboxHandles
from vnetpods_agent.dataplane import DataPlaneError, HostInterface, InterfaceExists
from vnetpods_agent.dataplane.names import UNTRANSLATED
from vnetpods_agent.dataplane.netlink import messages as rt
from vnetpods_agent.dataplane.netlink import tables
from vnetpods_agent.dataplane.netlink.socket import NetlinkRequest, NetlinkSocket
from vnetpods_agent.dataplane.pod import host_veth
from vnetpods_agent.dataplane.pod.check import deviations
from vnetpods_agent.dataplane.pod.host_veth import GATEWAY
from vnetpods_agent.dataplane.pod.reaper import Reaper

_SETTINGS = rt.link_settings(host_veth.BIRTH_SETTINGS)  # packed once: every ADD sends them
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT})  # a kernel without IPv6, or an MTU below 1280
_NO_ROUTE = frozenset({errno.ESRCH, errno.ENODEV})
_NO_NEIGHBOUR = frozenset({errno.ENOENT, errno.ENODEV})
_THERE = frozenset({errno.EEXIST})
_NO_LINK = frozenset({errno.ENODEV})
_FIRST = "eth0"
"""The interface of the kubelet's pods; a meta plugin (Multus) adds further ones."""
_FURTHER = 11800
"""The priority, in the pod, of rules for further interfaces."""
_TAKEN = {errno.EEXIST, errno.EBUSY}


def birth(attachment: Attachment, attempt: int, netns_fd: int | None) -> NetlinkRequest:
    """Equals `ip link add azv… index I address M mtu U type veth peer name eth0 index J address N mtu U gso_max_size G
    netns FD`, or without a namespace.

    The pod's GSO packets must fit the NIC, or the host segments each into packets of the MTU before they reach it:
    Hyper-V's NICs take 62,780 bytes, a veth by default 65,536. The host's end passes on what the NIC received, to which
    that limit doesn't apply.
    """
    host, pod = host_veth.indexes(attachment.key, attempt)
    here = rt.VethEnd(attachment.host_ifname, host, attachment.host_mac, attachment.mtu, GSO_MAX_SIZE)
    there = rt.VethEnd(attachment.key.ifname, pod, attachment.pod_mac, attachment.mtu, attachment.gso_max_size)
    return NetlinkRequest("create the interface of", str(attachment.key), rt.veth_create(here, there, netns_fd))


def host_steps(attachment: Attachment, index: int) -> list[NetlinkRequest]:
    """The alias comes last: the host reconciler ignores an end without one, so it never mistakes an end under
    construction for a damaged one.
    """
    name, address = attachment.host_ifname, attachment.address
    known_as = host_veth.altname(attachment)
    untranslated = rt.link_set(index, rt.link_group(UNTRANSLATED))
    return [
        # ip link set azv… group UNTRANSLATED (before it goes up: no connection of the pod starts translated)
        *([] if attachment.snat else [NetlinkRequest("exempt from SNAT", name, untranslated)]),
        # ip link set azv… addrgenmode none (before it goes up; pods have no IPv6)
        NetlinkRequest("keep IPv6 off", name, rt.link_set(index, rt.link_without_ipv6_address()), _NO_IPV6),
        # ip link set azv… up arp off; sysctl net.ipv4.conf.azv….forwarding=1 …
        NetlinkRequest("bring up", name, rt.link_set(index, _SETTINGS, up=True, arp=False)),
        # ip neigh replace 10.0.0.5 lladdr <pod end> dev azv… nud permanent (before the route: no ARP request)
        NetlinkRequest("add the neighbour of", address, rt.neighbour_add(address, attachment.pod_mac, index)),
        # ip route replace 10.0.0.5/32 dev azv… proto 118 scope link
        NetlinkRequest("add the route to", address, rt.route_add(rt.Route(address, 32, index))),
        # ip link property add dev azv… altname vnetpods-… (before the alias, which marks the end as complete)
        *([NetlinkRequest("name", name, rt.link_altname_add(index, known_as), _THERE)] if known_as else []),
        # ip link set azv… alias "vnetpods 10.0.0.5 …" (not accepted at creation)
        NetlinkRequest("name the owner of", name, rt.link_set(index, rt.link_alias(host_veth.alias(attachment)))),
    ]


def pod_steps(attachment: Attachment, index: int) -> list[NetlinkRequest]:
    """Another interface's default route stays (a pod may be in several networks)."""
    name, address, subject = attachment.key.ifname, attachment.address, str(attachment.key)
    return [
        # ip link set lo up (the runtime leaves it down)
        NetlinkRequest("bring up lo of", subject, rt.link_set(rt.LOOPBACK, up=True)),
        # ip link set eth0 addrgenmode none
        NetlinkRequest(
            f"keep IPv6 off {name} of", subject, rt.link_set(index, rt.link_without_ipv6_address()), _NO_IPV6
        ),
        # ip link set eth0 up
        NetlinkRequest(f"bring up {name} of", subject, rt.link_set(index, up=True)),
        # ip addr replace 10.0.0.5/32 dev eth0
        NetlinkRequest(f"add {address} to", subject, rt.address_add(address, 32, index)),
        # ip neigh replace 169.254.1.1 lladdr <host end> dev eth0 nud permanent
        NetlinkRequest(
            f"add the neighbour {GATEWAY} of", subject, rt.neighbour_add(GATEWAY, attachment.host_mac, index)
        ),
        # ip route append 169.254.1.1/32 dev eth0 scope link
        NetlinkRequest(
            f"add the route to {GATEWAY} of", subject, rt.route_append(rt.Route(GATEWAY, 32, index)), _THERE
        ),
        # ip route add default via 169.254.1.1 dev eth0
        NetlinkRequest(
            "add the default route of", subject, rt.route_add_first(rt.Route(rt.ANY, 0, index, GATEWAY)), _THERE
        ),
        *([] if name == _FIRST else _further_steps(attachment, index)),
    ]


def _further_steps(attachment: Attachment, index: int) -> list[NetlinkRequest]:
    """Packets with a further interface's source leave by it: from another one the host drops them as forged."""
    address, subject = attachment.address, str(attachment.key)
    rule = rt.Rule(_FURTHER, 0, 0, index, source=address)
    return [
        # ip route replace default via 169.254.1.1 dev net1 onlink table INDEX
        NetlinkRequest(
            "add the own route of", subject, rt.route_add(rt.Route(rt.ANY, 0, index, GATEWAY, index, onlink=True))
        ),
        # ip rule add priority 11800 from 10.0.0.5 lookup INDEX
        NetlinkRequest("add the rule of", subject, rt.rule_add(rule), _THERE),
    ]


def taken_steps(attachment: Attachment, index: int) -> list[NetlinkRequest]:
    """Steps for a pod end that the runtime will take."""
    # ip link set vnd… addrgenmode none arp off (it is down until the runtime has it)
    quiet = rt.link_set(index, rt.link_without_ipv6_address())
    deaf = rt.link_set(index, arp=False)
    name = attachment.key.ifname
    return [
        NetlinkRequest("keep IPv6 off", name, quiet, _NO_IPV6 | _NO_LINK),
        NetlinkRequest("make deaf to ARP", name, deaf, _NO_LINK),
    ]


def opening(attachment: Attachment, index: int) -> NetlinkRequest:
    """Equals `ip link show dev azv…`: the query enables the host end's transmit queue.

    The host end went up before the pod's end, without a carrier, and gets its queue only when the kernel's link watch
    has seen the carrier; until then it drops packets to the pod (without this, one first packet in ten). The query
    makes the kernel do that at once (rtnl_getlink, since 6.8; before, it happens within about a millisecond).
    """
    return NetlinkRequest("open", attachment.host_ifname, rt.link_get(index))


def teardown_requests(index: int, name: str, address: Address) -> list[NetlinkRequest]:
    """Without its route the pod is unreachable, and its own packets fail the anti-spoofing rule, too."""
    return [
        # ip link set azv… group DYING
        NetlinkRequest("mark for deletion", name, rt.link_set(index, rt.link_group(host_veth.DYING)), _NO_LINK),
        # ip route del 10.0.0.5/32 dev azv… proto 118
        NetlinkRequest("delete the route to", address, rt.route_delete(rt.Route(address, 32, index)), _NO_ROUTE),
        # ip neigh del 10.0.0.5 dev azv…
        NetlinkRequest("delete the neighbour of", address, rt.neighbour_delete(address, index), _NO_NEIGHBOUR),
    ]


class Transparent:
    """The DataPlane for pods that the host routes to. `opened` creates sockets; tests replace it to inject failures."""

    def __init__(self, reaper: Reaper, opened: Callable[[int | None], NetlinkSocket] | None = None) -> None:
        self._open = opened or (lambda descriptor: NetlinkSocket(descriptor=descriptor))
        self._host = self._open(None)
        self._reaper = reaper

    def close(self) -> None:
        self._host.close()

    def attach(self, attachment: Attachment, handles: SandboxHandles | None) -> None:
        host_veth.alias(attachment)  # raises before anything is created
        if handles is None:
            self._offer(attachment)
            return
        with self._open(handles.netlink_fd) as pod:
            host_index, pod_index = self._born(attachment, handles, pod)
            self._host.execute(host_steps(attachment, host_index))
            pod.execute(pod_steps(attachment, pod_index))
            self._host.execute([opening(attachment, host_index)])

    def _born(self, attachment: Attachment, handles: SandboxHandles, pod: NetlinkSocket) -> tuple[int, int]:
        """Creates both ends or finds existing ones; returns the indexes of host end and pod end."""
        attempt = 0
        for _ in range(host_veth.INDEX_ATTEMPTS + 2):  # each dying or stale end and older holder costs a round
            try:
                self._host.execute([birth(attachment, attempt, handles.netns_fd)])
            except DataPlaneError as error:
                if error.errno not in _TAKEN:
                    raise
            else:
                return host_veth.indexes(attachment.key, attempt)
            there = self._pod_end(attachment, pod)
            if there and (existing := self._existing(attachment, there, pod)):
                return existing
            if not there and not self._cleared(attachment):
                attempt += 1  # no name collides, so an index did
        raise DataPlaneError("create the interface of", str(attachment.key), errno.EBUSY, "names or indexes stay taken")

    def _offer(self, attachment: Attachment) -> None:
        """Creates both ends in the host's namespace; leaves the pod's end alone once the runtime has taken it."""
        link = self._find(attachment)
        if link and link.group == host_veth.DYING:
            self._host.execute([NetlinkRequest("delete", link.name, rt.link_delete(link.index), _NO_LINK)])
            link = None
        index = link.index if link else self._born_here(attachment)
        end = self._pod_end(attachment, self._host)
        if end and end.peer == index:
            self._host.execute(taken_steps(attachment, end.index))
        self._host.execute(host_steps(attachment, index))

    def _born_here(self, attachment: Attachment) -> int:
        for attempt in range(host_veth.INDEX_ATTEMPTS):
            try:
                self._host.execute([birth(attachment, attempt, None)])
            except DataPlaneError as error:
                if error.errno not in _TAKEN:
                    raise
            else:
                return host_veth.indexes(attachment.key, attempt)[0]
        raise DataPlaneError("create the interface of", str(attachment.key), errno.EBUSY, "names or indexes stay taken")

    def _pod_end(self, attachment: Attachment, pod: NetlinkSocket) -> rt.Link | None:
        name = attachment.key.ifname
        return pod.ask(NetlinkRequest("look for", name, rt.link_get(name=name)), rt.read_link)

    def _existing(self, attachment: Attachment, there: rt.Link, pod: NetlinkSocket) -> tuple[int, int] | None:
        """The indexes of the ends that an earlier attach created. None if they were being deleted; they are gone then.

        Docker and cnitool delete and add in the same namespace, faster than the reaper. Raises InterfaceExists.
        """
        peer = NetlinkRequest("look for", f"the peer of {there.name}", rt.link_get(there.peer))
        here = self._host.ask(peer, rt.read_link) if there.peer else None  # only a veth has one
        if here and here.peer == there.index:
            if here.group == host_veth.DYING:  # detached a moment ago, from any attachment
                self._host.execute([NetlinkRequest("delete", here.name, rt.link_delete(here.index), _NO_LINK)])
                return None
            if host_veth.belongs_to(here, attachment):
                return here.index, there.index
        if self._pod_end(attachment, pod) != there:
            return None  # the reaper has just deleted it
        said = "the namespace has one that isn't ours"
        raise InterfaceExists(f"create {there.name} of", str(attachment.key), errno.EEXIST, said)

    def _cleared(self, attachment: Attachment) -> bool:
        """Frees the host end's name; returns whether it was taken. Raises DataPlaneError if the holder isn't ours."""
        name = attachment.host_ifname
        holder = self._host.ask(NetlinkRequest("look for", name, rt.link_get(name=name)), rt.read_link)
        if holder is None:
            return False
        owned = host_veth.owner(holder)
        if host_veth.belongs_to(holder, attachment):
            # the same container's, left over from its earlier namespace
            self._host.execute([NetlinkRequest("delete the stale", name, rt.link_delete(holder.index), _NO_LINK)])
        elif owned:
            self._move_aside(holder, *owned)
        else:
            raise DataPlaneError(
                "create", name, errno.EEXIST, "the host has an interface of that name which isn't ours"
            )
        return True

    def _move_aside(self, link: rt.Link, key: AttachmentKey, address: Address) -> None:
        """Renames an older sandbox's end of the same pod name; it keeps its traffic until its own DEL."""
        rename = NetlinkRequest(
            "move aside", link.name, rt.link_set(link.index, rt.link_name(host_veth.aside_name(key))), _NO_LINK
        )
        try:
            self._host.execute([rename])
        except DataPlaneError as error:
            if error.errno != errno.EBUSY:
                raise
            # before kernel 6.2 only possible while down, which loses its route and neighbours
            neighbours = tables.neighbours(self._host, link.name, link.index)
            self._host.execute([NetlinkRequest("take down", link.name, rt.link_set(link.index, up=False)), rename])
            if link.group == host_veth.DYING:
                return
            again = [NetlinkRequest("bring up", link.name, rt.link_set(link.index, up=True))]
            again += [
                NetlinkRequest("add the neighbour of", n.address, rt.neighbour_add(n.address, n.mac, n.index))
                for n in neighbours
            ]
            again += [NetlinkRequest("add the route to", address, rt.route_add(rt.Route(address, 32, link.index)))]
            self._host.execute(again)

    def _find(self, attachment: Attachment) -> rt.Link | None:
        """The attachment's host end, looked up by its possible indexes; a link found there counts only with the right
        owner.
        """
        for attempt in range(host_veth.INDEX_ATTEMPTS):
            index, _ = host_veth.indexes(attachment.key, attempt)
            link = self._host.ask(NetlinkRequest("look for", str(attachment.key), rt.link_get(index)), rt.read_link)
            if link and host_veth.belongs_to(link, attachment):
                return link
        return None

    def detach(self, attachment: Attachment) -> None:
        link = self._find(attachment)
        if link:  # also a dying one: an earlier detach may have failed half-way
            self._host.execute(teardown_requests(link.index, link.name, attachment.address))
        self._reaper.bury(attachment.address)  # also without a link: it went with the sandbox, its connections did not

    def leaving(self) -> Collection[Address]:
        return self._reaper.leaving()

    def present(self, attachment: Attachment) -> bool:
        return self._find(attachment) is not None

    def check(self, attachment: Attachment, handles: SandboxHandles) -> Sequence[str]:
        with self._open(handles.netlink_fd) as pod:
            return deviations(attachment, self._find(attachment), self._host, pod)

    def interfaces(self) -> Sequence[HostInterface]:
        links = self._host.dump(NetlinkRequest("list links of", "the host", rt.links_dump()), rt.read_link)
        peers = {(link.peer, link.index) for link in links}
        return [
            replace(host_veth.described(link), untaken=(link.index, link.peer) in peers)
            for link in links
            if host_veth.is_host_end(link)
        ]

    def remove(self, interface: HostInterface) -> None:
        link = self._host.ask(NetlinkRequest("look for", interface.name, rt.link_get(interface.index)), rt.read_link)
        if link is None or not host_veth.is_host_end(link) or host_veth.described(link) != interface:
            return  # gone, or already another's
        if interface.address is None:
            self._host.execute([NetlinkRequest("delete", link.name, rt.link_delete(link.index), _NO_LINK)])
        else:
            self._host.execute(teardown_requests(link.index, link.name, interface.address))
            self._reaper.bury(interface.address)
