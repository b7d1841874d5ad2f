"""Keeps on the host what pods need there: declared whole, put right by looking, within seconds after somebody undid
it.

systemd-networkd, NetworkManager, cloud agents, firewalls and people flush rules and routes that they don't know. A
thread of its own listens to the kernel's news, looks at the areas concerned and puts right what differs (see
`actions`). Nothing is durable: a new process declares again. `declare`, `glance`, `held_by_host`, `wait`, `failing` and
`unguarded` may be called from any thread, `on_event`, `on_links` and `on_guarded` are called from the reconciler's.

An area is looked at at most once per `PAUSE` however much happens, and every `PERIOD` even if nothing is heard; one
that failed again after `PAUSE`. The longest way back is thus some three seconds; five are promised.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from vnetpods_agent.attachment import Address
from vnetpods_agent.dataplane import DataPlaneError, HostState
from vnetpods_agent.dataplane.host import actions
from vnetpods_agent.dataplane.host.actions import SYSCTL, Change, HostActions
from vnetpods_agent.dataplane.host.declared import understood
from vnetpods_agent.dataplane.names import TABLE
from vnetpods_agent.dataplane.netlink import tables
from vnetpods_agent.dataplane.netlink.monitor import Area, NetlinkMonitor
from vnetpods_agent.dataplane.netlink.socket import NetlinkSocket

FAILED = "HostStateFailed"
REFUSED = "HostStateRefused"
PAUSE = {
    Area.ADDRESSES: 0.1,
    Area.SETTINGS: 1.0,
    Area.ROUTING: 1.0,
    Area.RULESET: 1.0,
    Area.FORWARDING: 2.0,
    Area.LEGACY_FORWARDING: 2.0,
    Area.FIREWALL: 2.0,
    Area.PODS: 2.0,
}
"""Seconds between two looks at an area. Pods come in bursts, each with some news about its link: those wait for one
look.
"""
PERIOD = {**dict.fromkeys(Area, 60.0), Area.LEGACY_FORWARDING: 4.0}
"""Legacy iptables tells nobody of its changes."""
BREATH = 0.2
"""The thread sleeps at least this long between two readings of the news, so that it doesn't compete with a burst of
ADDs.
"""

OnEvent = Callable[[str, str], None]
log = structlog.get_logger()


class HostReconciler:
    """One thread, from `start` to `close`. `on_event(kind, message)` hears of what was put right or can't be.

    `on_links()` is told that one of the host's own interfaces may have changed, `on_guarded()`, once, that pods may
    come (see `unguarded`). `pace` multiplies all pauses and periods: tests are in a hurry. `sysctl`: where the kernel's
    /proc/sys/net can be written.
    """

    def __init__(
        self,
        on_event: OnEvent,
        pace: float = 1.0,
        sysctl: Path = SYSCTL,
        on_links: Callable[[], None] = lambda: None,
        on_guarded: Callable[[], None] = lambda: None,
    ) -> None:
        self._pace = pace
        self._on_event = on_event
        self._on_links = on_links
        self._on_guarded = on_guarded
        self._guarded = False
        self._changed = threading.Condition()
        self._declared: HostState | None = None
        self._state: HostState | None = None
        self._settled = False
        self._closing = False
        self._held: frozenset[Address] = frozenset()
        self._glimpsed: frozenset[Address] = frozenset()
        self._seen: HostState | None = None  # the state for which the host's addresses were looked at last
        self._failing: dict[Area, Exception] = {}
        self._last: dict[Area, list[Change]] = {}
        self._news = NetlinkMonitor()
        self._actions = HostActions(sysctl)
        self.thread = threading.Thread(target=self._run, name="host state", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def close(self) -> None:
        """The host's state stays as it is: pods live from it. A second call does nothing."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
        self._news.wake()
        if self.thread.is_alive():
            self.thread.join()
        self._news.close()
        self._actions.close()

    def declare(self, state: HostState) -> None:
        """What must hold from now on; the same again costs nothing. What can't be understood of it is left out."""
        with self._changed:
            if state == self._declared:
                return
            self._declared = state
            self._state, refused = understood(state)
            self._settled = False
        for entry in refused:
            log.error("left out of the host's state", entry=entry)
            self._on_event(REFUSED, f"left out: {entry}")
        self._news.wake()

    def wait(self, timeout: float) -> bool:
        """Until what was declared last has been put in place everywhere; False when that takes longer or fails."""
        with self._changed:
            return self._changed.wait_for(lambda: self._settled, timeout)

    @property
    def failing(self) -> str:
        """What running pods live from and what can't be put right although it was tried, and why; else empty.

        Addresses on the node's own interfaces are not among it: they concern the pods to come. Nor is a table that
        wouldn't stand still.
        """
        with self._changed:
            failing = dict(self._failing)
        return "; ".join(
            f"cannot put right {area.value}: {_said(error)}"
            for area, error in failing.items()
            if area is not Area.ADDRESSES and not _restless(error)
        )

    @property
    def unguarded(self) -> str:
        """Why no pod may come yet: until the rule set has been there once, a pod could pass for another and reach what
        is the node's alone. Later failures are `failing`'s: the kernel keeps the tables that it has.
        """
        with self._changed:
            if self._guarded:
                return ""
            error = self._failing.get(Area.RULESET)
        return f"the nftables table {TABLE} has not been loaded yet" + (f": {_said(error)}" if error else "")

    def glance(self) -> frozenset[Address]:
        """What the host holds just now, before it is declared whose that is. It counts as held until the reconciler has
        looked at what was declared last, so that no pod gets an address in the moment before. Raises DataPlaneError.
        """
        with NetlinkSocket() as netlink:
            there = frozenset(Address(held.address) for held in tables.addresses(netlink))
        with self._changed:
            self._glimpsed = there
        return there

    def held_by_host(self) -> frozenset[Address]:
        """Addresses of the pool that the host holds itself and that were left there: not to be given to pods."""
        with self._changed:
            return self._held if self._seen is self._state else self._held | self._glimpsed

    def uninstall(self) -> list[str]:
        """Instead of `start`: takes everything of ours away; what must stay for running pods is said."""
        return self._actions.uninstall()

    def _run(self) -> None:
        seen: HostState | None = None
        due = dict.fromkeys(Area, float("inf"))
        earliest = dict.fromkeys(Area, 0.0)
        while True:
            news = self._news.wait(min(due.values()) - time.monotonic() if seen else 3600.0)
            with self._changed:
                if self._closing:
                    return
                state = self._state
            if Area.SETTINGS in news:
                self._on_links()
            if state is None:
                continue
            now = time.monotonic()
            if seen is None and actions.tables_are_there():  # an earlier process loaded them
                self._guard()
            if state != seen:
                seen, due = state, dict.fromkeys(Area, now)
            for area in news:
                due[area] = min(due[area], max(now, earliest[area]))
            for area in Area:
                if due[area] <= now:
                    fine = self._look(area, state)
                    earliest[area] = time.monotonic() + PAUSE[area] * self._pace
                    due[area] = time.monotonic() + PERIOD[area] * self._pace if fine else earliest[area]
            self._announce(state)
            time.sleep(BREATH * self._pace)

    def _look(self, area: Area, state: HostState) -> bool:
        try:
            happenings = self._actions.look(area, state)
        except Exception as error:
            with self._changed:
                earlier, self._failing[area] = self._failing.get(area), error
            known = earlier is not None and _said(earlier) == _said(error)
            if not known and not _restless(error):  # once, not every second
                ours = isinstance(error, (DataPlaneError, OSError))
                log.warning("cannot keep the host's state", area=area.value, error=_said(error), exc_info=not ours)
                self._on_event(FAILED, f"cannot put right {area.value}: {_said(error)}")
            return False
        with self._changed:
            self._failing.pop(area, None)
            if area is Area.ADDRESSES:
                self._held, self._seen = self._actions.held_by_host, state
        if area is Area.RULESET:
            self._guard()
        before, self._last[area] = self._last.get(area, []), happenings
        for happening in happenings:
            if happening not in before:  # what lasts is said once
                log.info("host state", area=area.value, kind=happening.kind, message=happening.message)
                self._on_event(happening.kind, happening.message)
        return True

    def _guard(self) -> None:
        with self._changed:
            guarded, self._guarded = self._guarded, True
        if not guarded:
            self._on_guarded()

    def _announce(self, state: HostState) -> None:
        with self._changed:
            if state == self._state and not self._failing and not self._settled:
                self._settled = True
                self._changed.notify_all()


def _said(error: Exception) -> str:
    return str(error) or repr(error)


def _restless(error: Exception) -> bool:
    """Pods come and go too fast to count them; soon again."""
    return isinstance(error, DataPlaneError) and error.errno == errno.EAGAIN
