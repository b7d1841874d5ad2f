"""A DataPlane whose kernel is a dictionary, and whose every step can be held up: for what depends on the order of
things.

Whether the real one does what it says is tested in tests/agent/dataplane; whether both go together, in test_service and
test_cases.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Collection, Sequence

from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, SandboxHandles
from vnetpods_agent.dataplane import DataPlaneError, HostInterface, InterfaceExists


class DictPlane:
    def __init__(self) -> None:
        self.there: dict[AttachmentKey, HostInterface] = {}
        self.gone: list[HostInterface] = []
        self.on_their_way: set[Address] = set()
        self.taken: set[str] = set()  # namespaces with an eth0 of their own
        self.overlooked: set[AttachmentKey] = set()  # missing in every list, although there
        self.refuses: set[str] = set()  # steps that the kernel refuses
        self.refuses_once = ""
        self.held: dict[str, threading.Event] = {}
        self.reached: dict[str, threading.Event] = {}

    def hold(self, step: str) -> threading.Event:
        """The next `step` waits until the event is set; `reached[step]` is set when it gets there."""
        self.held[step], self.reached[step] = threading.Event(), threading.Event()
        return self.held[step]

    def _step(self, step: str, subject: AttachmentKey) -> None:
        if step in self.held:
            self.reached[step].set()
            self.held.pop(step).wait(10)
        if step == self.refuses_once:
            self.refuses_once = ""
            raise DataPlaneError(step, str(subject), errno.EIO)
        if step in self.refuses:
            raise DataPlaneError(step, str(subject), errno.EIO)

    def attach(self, attachment: Attachment, handles: SandboxHandles | None) -> None:
        self._step("attach", attachment.key)
        if attachment.netns in self.taken:
            raise InterfaceExists("create", str(attachment.key), errno.EEXIST)
        assert attachment.address not in {i.address for key, i in self.there.items() if key != attachment.key}
        index = len(self.there) + 10
        name, uid = attachment.host_ifname, attachment.pod.uid if attachment.pod else ""
        self.there[attachment.key] = HostInterface(
            name, index, attachment.key, attachment.address, attachment.created, uid
        )
        self._step("half an attach", attachment.key)

    def detach(self, attachment: Attachment) -> None:
        self._step("detach", attachment.key)
        self.there.pop(attachment.key, None)

    def present(self, attachment: Attachment) -> bool:
        return attachment.key in self.there

    def leaving(self) -> Collection[Address]:
        return frozenset(self.on_their_way)

    def check(self, attachment: Attachment, handles: SandboxHandles) -> Sequence[str]:
        return [] if attachment.key in self.there else ["there is no interface"]

    def interfaces(self) -> Sequence[HostInterface]:
        return [interface for key, interface in self.there.items() if key not in self.overlooked]

    def remove(self, interface: HostInterface) -> None:
        assert interface.key is not None
        self._step("remove", interface.key)
        self.gone.append(self.there.pop(interface.key))
