"""The slow part of deleting pods' interfaces, out of the callers' way.

Deleting a link waits for every CPU to stop looking at it (synchronize_net): some 20 ms, during which the kernel also
holds the lock that every ADD needs. So `detach` only moves the host end into the group DYING, and the reaper's own
thread deletes that group: sixty links cost what one costs. Between two bursts it rests, so that ADDs get their share
of the lock.

Before that the connections of each address are forgotten; only then is the address free of its past.

Which addresses are not gone yet is kept here, guarded by a lock, and named by `leaving`. After a crash the links
still are in their group: `start` finds them and goes on.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

import structlog

from vnetpods_agent.attachment import Address
from vnetpods_agent.dataplane import DataPlaneError
from vnetpods_agent.dataplane.netlink import conntrack
from vnetpods_agent.dataplane.netlink.messages import link_delete, links_dump, read_link
from vnetpods_agent.dataplane.netlink.socket import NetlinkRequest, NetlinkSocket
from vnetpods_agent.dataplane.pod import host_veth

NETLINK_NETFILTER = 12
REST = 10.0
"""The reaper rests this many times as long as its last deletion took.

Measured with an ADD after every DEL: the ADD's p99 is 0.9 ms, against 3.2 ms with three times and 7.3 ms without any
rest; 250 pods are gone within a second.
"""
RETRY = 1.0
JOINING = 3
"""How often a burst waits for those that came meanwhile."""
_NO_SUCH = frozenset({errno.ENODEV})

log = structlog.get_logger()


class Reaper:
    """Deletes what `bury` hands over; one thread, started by `start` and ended by `close`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._leaving: dict[Address, int] = {}  # how many host ends of the address are not gone yet
        self._buried: list[Address] = []
        self._closing = False
        self._unable = False
        self.thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Takes over what an earlier process left dying."""
        with NetlinkSocket() as netlink:
            links = netlink.dump(NetlinkRequest("list links of", "the host", links_dump()), read_link)
        for link in links:
            owned = host_veth.owner(link)
            if link.group == host_veth.DYING and owned:
                self.bury(owned[1])
        self.thread.start()

    def close(self) -> None:
        """Finishes the burst under way; what is still dying is left to the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self.thread.is_alive():
            self.thread.join()

    def bury(self, address: Address) -> None:
        """The address's host end has just been moved into the group DYING, or went with its sandbox."""
        with self._changed:
            self._leaving[address] = self._leaving.get(address, 0) + 1
            self._buried.append(address)
            self._changed.notify_all()

    def leaving(self) -> frozenset[Address]:
        with self._changed:
            return frozenset(self._leaving)

    def wait(self, timeout: float) -> bool:
        """Until nothing is leaving any more; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._leaving, timeout)

    def _run(self) -> None:
        while burst := self._next_burst():
            try:
                with NetlinkSocket() as links:
                    took = self._reap(links, burst)
            except Exception as error:
                ours = isinstance(error, DataPlaneError)
                said = str(error) or repr(error)
                log.warning("cannot clear away after former pods yet", error=said, pods=len(burst), exc_info=not ours)
                with self._changed:
                    self._buried.extend(burst)
                self._rest(RETRY)
            else:
                self._rest(REST * took)

    def _reap(self, links: NetlinkSocket, burst: list[Address]) -> float:
        """Connections first: after a crash in between the links are still there and tell of what is left to do.

        So what joins the group meanwhile, and goes with it, is forgotten before, too. Returns how long the deletion
        held the kernel's lock.
        """
        self._forget(burst)
        for _ in range(JOINING):
            if not (joined := self._joined()):
                break
            burst += joined  # in place: the caller gives back what failed
            self._forget(joined)
        if self._closing:
            return 0.0
        began = self._clock()
        # ip link del group DYING
        gone = f"{len(burst)} former pods"
        links.execute([NetlinkRequest("delete interfaces of", gone, link_delete(group=host_veth.DYING), _NO_SUCH)])
        took = self._clock() - began
        self._gone(burst)
        return took

    def _forget(self, addresses: list[Address]) -> None:
        """A kernel that doesn't let us (ctnetlink is a module, not everywhere there) leaves connections to their
        timeouts; that is no reason to keep the addresses.
        """
        try:
            with NetlinkSocket(NETLINK_NETFILTER) as connections:
                for address in sorted(set(addresses)):
                    if self._closing:
                        return
                    conntrack.flush(connections, address)
        except DataPlaneError as error:
            if error.errno not in conntrack.UNABLE:
                raise
            if not self._unable:  # once
                log.warning("the connections of former pods can't be forgotten on this kernel", error=str(error))
            self._unable = True

    def _joined(self) -> list[Address]:
        """What has been buried since."""
        with self._changed:
            joined, self._buried = self._buried, []
            return joined

    def _next_burst(self) -> list[Address]:
        """What is buried by now; waits for the first, and is empty only when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._buried or self._closing)
            return [] if self._closing else self._joined()

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)

    def _gone(self, burst: list[Address]) -> None:
        with self._changed:
            for address in burst:
                self._leaving[address] -= 1
                if not self._leaving[address]:
                    del self._leaving[address]
            self._changed.notify_all()
