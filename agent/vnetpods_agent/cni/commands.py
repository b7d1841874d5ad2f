"""The six CNI commands: what each guarantees, and what is durable once it has answered.

The server calls `Commands.handle` once per connection, each in its own task; the spool calls it, too. Errors are
CniErrors, or those of attachments, ledger and data plane, which become CniErrors in one place; any other is answered
with code 999 and logged with its traceback. One log line per finished call.

    ADD      the address is in the ledger and the interface works. Repeated: the same answer, and what is missing is set
             up again. Waits first until the host's rule set has been loaded once.
             Waits for an address until the call's deadline, then fails with the reason (code 11).
    DEL      the address is free. Succeeds without namespace, for unknown containers, and repeatedly; requires container
             id and interface name. Without a network name it applies to that interface in any network.
    CHECK    compares kernel and ledger with each other and with prevResult.
    GC       releases attachments missing from cni.dev/valid-attachments; without that list it does nothing.
    STATUS   50 when ADD can't be served. A pool that is empty but about to grow can serve: ADD waits.
             51 when the host's part of the pods' connectivity can't be kept up: running pods lack it, too.
    VERSION  requires nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from vnetpods_agent.attachment import Pod, SandboxHandles
from vnetpods_agent.cni import protocol
from vnetpods_agent.cni.frames import Command, Request, Response
from vnetpods_agent.cni.protocol import Call, CniError, Code
from vnetpods_agent.cni.wishes import Wishes, wishes
from vnetpods_agent.config import Annotations
from vnetpods_agent.dataplane import DataPlane, DataPlaneError, InterfaceExists
from vnetpods_agent.ipam.attachments import Attachments
from vnetpods_agent.ipam.ledger.store import LedgerError
from vnetpods_agent.ipam.requests import Abandoned, AddressRefused, AttachRequest, NoAddress
from vnetpods_agent.ipam.worker import WorkerThread

_OWN = Path("/proc/self/ns/net")
_NO_NETNS = (errno.EINVAL, errno.ENOTTY)
"""Errnos of setns(2) for a file that is no network namespace."""

log = structlog.get_logger(component="cni")

LASTING = 10.0
"""Seconds that a failure must last before it counts, since it may be transient: containerd makes the node NotReady.
"""

Observer = Callable[[str, str, float], None]
"""Called after every call with verb, outcome ("ok" or the code) and seconds."""


@dataclass(slots=True)
class Lasting:
    """Returns `trouble`'s message once it has lasted LASTING seconds without a break; call it every few seconds."""

    trouble: Callable[[], str]
    clock: Callable[[], float] = time.monotonic
    _since: float | None = None

    def __call__(self) -> str:
        if not (said := self.trouble()):
            self._since = None
            return ""
        now = self.clock()
        self._since = now if self._since is None else self._since
        return said if now - self._since >= LASTING else ""


@dataclass(frozen=True, slots=True)
class _Ask:
    """One call: parsed, as received, and the fields of its log line."""

    call: Call
    request: Request
    about: dict[str, str]


@dataclass(slots=True)
class Commands:
    """`unfit`: why no ADD can be served at present; `limited`: what running pods lack on the host; both empty if all is
    well. `caught_up`: DELs spooled while no agent ran have been replayed once. `guarded`: the host's rule set has been
    loaded once (see HostReconciler.unguarded). `allowed`: which namespaces may use which annotations; `refused` is
    called with a pod whose wish is refused, and the reason.
    """

    attachments: Attachments
    kernel: WorkerThread
    plane: DataPlane
    unfit: Callable[[], str]
    limited: Callable[[], str]
    observe: Observer
    caught_up: asyncio.Event
    guarded: asyncio.Event
    allowed: Annotations = field(default_factory=Annotations)
    refused: Callable[[Pod, str], None] = lambda _pod, _why: None

    async def handle(self, request: Request) -> Response:
        """Raises nothing but CancelledError."""
        began = time.perf_counter()
        outcome, about = "cancelled", _about(request)
        try:
            stdout = await self._answer(request, about)
            outcome = "ok"
            return Response(0, stdout)
        except CniError as error:
            outcome = str(int(error.code))
            about |= {"error": error.message} | ({"details": error.details} if error.details else {})
            return Response(1, protocol.error_body(error, protocol.asked_version(request.stdin)))
        finally:
            seconds = time.perf_counter() - began
            self.observe(request.verb.name, outcome, seconds)
            quiet = request.verb is Command.STATUS  # every five seconds: logged only on failure
            level = log.warning if outcome != "ok" else log.debug if quiet else log.info
            say = partial(level, "call", verb=request.verb.name, outcome=outcome)
            # the caller gets its answer before the line is written
            asyncio.get_running_loop().call_soon(partial(say, ms=round(seconds * 1000, 2), **about))

    async def _answer(self, request: Request, about: dict[str, str]) -> bytes:
        try:
            ask = _Ask(protocol.parse(request), request, about)
            return await _TABLE[request.verb](self, ask)
        except CniError:
            raise
        except NoAddress as error:
            raise CniError(Code.TRY_AGAIN_LATER, f"no address for {_whose(request)} in time", str(error)) from error
        except AddressRefused as error:
            raise CniError(Code.CONFIG, f"{_whose(request)} can't have that address", str(error)) from error
        except Abandoned as error:
            raise CniError(
                Code.TRY_AGAIN_LATER, f"{request.verb.name} of {_whose(request)} was given up: {error}"
            ) from error
        except InterfaceExists as error:
            raise CniError(Code.INTERFACE_EXISTS, str(error)) from error
        except DataPlaneError as error:
            raise CniError(Code.IO, str(error)) from error
        except LedgerError as error:
            raise CniError(Code.TRY_AGAIN_LATER, f"no address can be given out: {error}") from error
        except Exception as error:
            log.exception("unexpected error", **_about(request))
            raise CniError(
                Code.INTERNAL, f"{type(error).__name__}: {error}", "a defect of the agent, see its log"
            ) from error

    async def _add(self, ask: _Ask) -> bytes:
        call, asked = ask.call, self._wishes(ask.call)
        await self._spool_first(ask)
        await self._guard_first(ask)
        wanted = AttachRequest(call.key, call.netns, call.pod, asked.address, snat=asked.snat)
        attachment = await self.attachments.attach(wanted, _handles(ask), ask.request.deadline)
        if asked.address.address not in (None, attachment.address):
            raise AddressRefused(f"it is attached already, with the address {attachment.address}")
        ask.about["address"] = attachment.address
        return protocol.result(ask.call, attachment)

    def _wishes(self, call: Call) -> Wishes:
        """Raises before an address is taken; an Event tells the pod's owner why, the runtime retries for ever."""
        try:
            return wishes(call, self.allowed)
        except CniError as error:
            if call.pod is not None:
                self.refused(call.pod, f"{error.message}: {error.details}")
            raise

    async def _spool_first(self, ask: _Ask) -> None:
        """Waits for the spool's first replay if the container or the namespace is already attached. A repeated ADD
        keeps the attachment, which an earlier spooled DEL would then take from a running pod; and an ADD into a
        namespace with an interface left by such a DEL would be refused. A new attachment is safe from earlier DELs, so
        other ADDs don't wait.
        """
        if self.caught_up.is_set() or not self._former(ask.call):
            return
        try:
            async with asyncio.timeout_at(ask.request.deadline):
                await self.caught_up.wait()
        except TimeoutError:
            said = f"{_whose(ask.request)} has to wait for the DELs that came while no agent ran"
            raise CniError(Code.TRY_AGAIN_LATER, said, "they are being done") from None

    def _former(self, call: protocol.Call) -> bool:
        """Whether this container, or another in the same namespace, has an attachment with that interface name."""
        key = call.key
        known = self.attachments.by_key.items()
        there = any(a.netns == call.netns and k.ifname == key.ifname for k, a in known)
        return there or bool(self.attachments.of(key.container_id, key.ifname))

    async def _guard_first(self, ask: _Ask) -> None:
        """Waits for the rule set: without it a pod could reach destinations reserved for the node."""
        try:
            async with asyncio.timeout_at(ask.request.deadline):
                await self.guarded.wait()
        except TimeoutError:
            raise CniError(Code.TRY_AGAIN_LATER, f"{_whose(ask.request)} can't be added yet", self.unfit()) from None

    async def _del(self, ask: _Ask) -> bytes:
        key, before = ask.call.key, ask.request.spooled
        keys = [key] if key.network else self.attachments.of(key.container_id, key.ifname)
        found = [await self.attachments.detach(each, before=before) for each in keys]
        if addresses := [attachment.address for attachment in found if attachment is not None]:
            ask.about["address"] = ", ".join(addresses)
        if later := [str(each) for each in keys if before and each in self.attachments.by_key]:
            ask.about["spared"] = f"{', '.join(later)}: attached since the DEL was spooled"
        return b""

    async def _check(self, ask: _Ask) -> bytes:
        handles = _handles(ask)
        attachment = self.attachments.by_key.get(ask.call.key)
        if attachment is None:
            raise CniError(
                Code.UNKNOWN_ATTACHMENT, f"{ask.call.key} has no address", "it was never added, or deleted since"
            )
        found = [
            *protocol.contradictions(ask.call.previous or {}, ask.call.netns, attachment),
            *await self.kernel.submit(self.plane.check, attachment, handles),
        ]
        if found:
            raise CniError(
                Code.DEVIATION, f"{ask.call.key} ({attachment.address}) is not as it was made", "; ".join(found)
            )
        return b""

    async def _gc(self, ask: _Ask) -> bytes:
        if ask.call.valid is None:
            return b""
        before = ask.request.spooled or self.attachments.now()
        stale = [
            key
            for key in self.attachments.by_key
            if key.network == ask.call.network
            and (key.container_id, key.ifname) not in ask.call.valid
            and not self.attachments.busy(key)  # an ADD newer than the list, or a DEL
        ]
        outcomes = await asyncio.gather(
            *(self.attachments.detach(key, before=before) for key in stale), return_exceptions=True
        )
        if errors := [str(outcome) for outcome in outcomes if isinstance(outcome, Exception)]:
            raise CniError(Code.IO, f"{len(errors)} of {len(stale)} attachments remain", "; ".join(errors))
        return b""

    async def _status(self, _: _Ask) -> bytes:
        unfit, limited = self.unfit(), self.limited()
        if limited:
            raise CniError(
                Code.LIMITED, "the pods of this node are not fully connected", f"{limited}; {unfit}".rstrip("; ")
            )
        if unfit:
            raise CniError(Code.UNAVAILABLE, "no pod can be added", unfit)
        return b""

    async def _version(self, ask: _Ask) -> bytes:
        return protocol.versions(ask.call.version)


_TABLE: dict[Command, Callable[[Commands, _Ask], Awaitable[bytes]]] = {
    Command.ADD: Commands._add,  # noqa: SLF001 - the class's own table
    Command.DEL: Commands._del,  # noqa: SLF001
    Command.CHECK: Commands._check,  # noqa: SLF001
    Command.GC: Commands._gc,  # noqa: SLF001
    Command.STATUS: Commands._status,  # noqa: SLF001
    Command.VERSION: Commands._version,  # noqa: SLF001
}


def _handles(ask: _Ask) -> SandboxHandles:
    """The pod's handles. In the host's own namespace the pod's default route would cut the node off the network."""
    handles, netns, number = ask.request.handles, protocol.quoted(ask.call.netns), ask.request.netns_errno
    if handles is None:
        why = f": {os.strerror(number)}" if number else ""
        no_netns = "; it is no network namespace" if number in _NO_NETNS else ""
        raise CniError(Code.NETNS, f"CNI_NETNS: {netns} could not be opened{why}{no_netns}")
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(handles.netns_fd), _OWN.stat()):
            raise CniError(Code.NETNS, f"CNI_NETNS: {netns} is the host's own network namespace")
    return handles


def _about(request: Request) -> dict[str, str]:
    """Fields that identify a call in the log, from unchecked input."""
    env = request.env
    pairs = protocol.arguments(env.get("CNI_ARGS", ""))
    about = {
        "container": env.get("CNI_CONTAINERID", ""),
        "ifname": env.get("CNI_IFNAME", ""),
        "namespace": pairs.get("K8S_POD_NAMESPACE", ""),
        "pod": pairs.get("K8S_POD_NAME", ""),
        "replayed": "spool" if request.replayed else "",
    }
    return {name: protocol.cut(value, protocol.SHOWN) for name, value in about.items() if value}


def _whose(request: Request) -> str:
    about = _about(request)
    if "pod" in about:
        return f"pod {about.get('namespace', '')}/{about['pod']}"
    return f"container {about.get('container', '?')}"
