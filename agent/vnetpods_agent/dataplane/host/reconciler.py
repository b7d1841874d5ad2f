"""Keeps the host state that pods need: declared as a whole, reconciled against the kernel, and restored within seconds.

systemd-networkd, NetworkManager, cloud agents, firewalls and people flush unknown rules and routes. A thread of its own
listens to the kernel's notifications, checks the areas concerned and corrects differences (see `actions`). Nothing is
durable: a new process declares again. `declare`, `glance`, `held_by_host`, `wait`, `failing` and `unguarded` may be
called from any thread; `on_event`, `on_links` and `on_guarded` are called from the reconciler's.

An area is checked at most once per `PAUSE` however much changes, and every `PERIOD` even without a notification; after
a failure again after `PAUSE`. Restoring thus takes at most about three seconds; five are promised.
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
"""Minimum seconds between two checks of an area. Pods start in bursts, each with several notifications about its link:
one check covers them.
"""
PERIOD = {**dict.fromkeys(Area, 60.0), Area.LEGACY_FORWARDING: 4.0}
"""Maximum seconds between two checks; legacy iptables sends no notifications."""
BREATH = 0.2
"""Minimum seconds that the thread sleeps between two reads of notifications, so that it doesn't compete with a burst
of ADDs.
"""

OnEvent = Callable[[str, str], None]
log = structlog.get_logger()


class HostReconciler:
    """One thread, from `start` to `close`. `on_event(kind, message)` is called for corrections and failures.

    `on_links()` is called when one of the host's own interfaces may have changed, `on_guarded()` once, when pods may
    start (see `unguarded`). `pace` multiplies all pauses and periods, for faster tests. `sysctl`: a writable
    /proc/sys/net.
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
        self._seen: HostState | None = None  # the state for which the host's addresses were last checked
        self._failing: dict[Area, Exception] = {}
        self._last: dict[Area, list[Change]] = {}
        self._news = NetlinkMonitor()
        self._actions = HostActions(sysctl)
        self.thread = threading.Thread(target=self._run, name="host state", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def close(self) -> None:
        """Ends the thread; the host's state stays, since pods depend on it. A second call does nothing."""
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
        """Declares the desired state; repeating it costs nothing. Invalid entries are left out."""
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
        """Waits until the last declared state is in place in all areas; False if that takes longer or fails."""
        with self._changed:
            return self._changed.wait_for(lambda: self._settled, timeout)

    @property
    def failing(self) -> str:
        """State that running pods depend on and that can't be restored, with the reasons; otherwise empty.

        Excludes addresses on the node's own interfaces, which concern only future pods, and a table that kept changing
        while it was read.
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
        """Why no pod may start yet: before the rule set is loaded once, a pod could forge its source and reach
        destinations reserved for the node. Later failures belong to `failing`: the kernel keeps its present tables.
        """
        with self._changed:
            if self._guarded:
                return ""
            error = self._failing.get(Area.RULESET)
        return f"the nftables table {TABLE} has not been loaded yet" + (f": {_said(error)}" if error else "")

    def glance(self) -> frozenset[Address]:
        """Reads the host's present addresses, before a new state is declared. They count as held until the reconciler
        has checked the last declared state, so that no pod gets one in between. Raises DataPlaneError.
        """
        with NetlinkSocket() as netlink:
            there = frozenset(Address(held.address) for held in tables.addresses(netlink))
        with self._changed:
            self._glimpsed = there
        return there

    def held_by_host(self) -> frozenset[Address]:
        """Pool addresses that stay on the host's own interfaces: never assigned to pods."""
        with self._changed:
            return self._held if self._seen is self._state else self._held | self._glimpsed

    def uninstall(self) -> list[str]:
        """Instead of `start`: removes everything of ours; returns what must stay for running pods."""
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
            if not known and not _restless(error):  # once, not on every attempt
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
            if happening not in before:  # lasting ones are reported once
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
    """Whether a table changed during every read, as pods came and went; retried soon."""
    return isinstance(error, DataPlaneError) and error.errno == errno.EAGAIN
