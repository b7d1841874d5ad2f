"""The operator's half of a NodeIPPool, played by the rules: it grows and shrinks the pool, cancels releases, and
sometimes somebody deletes the object.

The NIC is in the model. An address comes onto the NIC before it is listed; it leaves when `releasing` and `released`
both have it in one object version that repeats our releaseRequest, and the write that says so carries that version
(docs/architecture.md, "Release handshake"). No address ever comes back, so one name for each will do. Everything goes
through the real API server, which may be away: then nothing happens.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from tests.agent.machine import supply
from tests.agent.soak.model import Model
from vnetpods_agent.kubeapi import ApiError, KubeApi, KubeError
from vnetpods_api import NodeIPPool, Spec, apply_body, from_object
from vnetpods_api.names import GROUP, OPERATOR_MANAGER, PLURAL, VERSION

PATH = f"/apis/{GROUP}/{VERSION}/{PLURAL}"
SMALL, LARGE = 60, 110
PERIOD = 0.5
NOT_FOUND, CONFLICT = 404, 409


class AdminApi(KubeApi):
    """The agent's client, and the one verb more that an administrator needs."""

    async def delete(self, path: str) -> None:
        await self._request("DELETE", path, {}, None, "application/json")


@dataclass
class Operator:
    api: AdminApi
    name: str
    model: Model
    chance: random.Random
    calm: bool = False
    request: str | None = None
    done: Counter[str] = field(default_factory=Counter)
    _number: int = 0

    async def run(self) -> None:
        while True:
            await self.try_step()
            await asyncio.sleep(PERIOD)

    async def try_step(self) -> None:
        """A step that may be lost to another writer or to an API server that is away."""
        try:
            await self.step()
        except KubeError as error:
            lost = isinstance(error, ApiError) and error.status in (CONFLICT, NOT_FOUND)
            self.done["writes lost to another" if lost else "writes lost to an outage"] += 1

    async def step(self) -> None:
        """One look and one write. Raises KubeError."""
        pool = await self.look()
        if pool is None:
            # what the node had promised is forgotten with the object, and so is what it had been asked for
            await self._apply(f"{PATH}/{self.name}", apply_body(self.name, spec=Spec()))
            await self._write(None, ())
            self.done["object made"] += 1
            return
        releasing = tuple(unit for interface in pool.status.interfaces for unit in interface.releasing)
        agent = pool.status.agent
        answered = agent is not None and agent.release_request == self.request
        gone = [unit for unit in releasing if answered and unit in pool.status.released]
        unasked = [u for u in pool.status.released if u in self.model.nic and u not in releasing]
        if gone:
            self.model.removed(gone)
            self.done["units removed"] += len(gone)
            releasing = tuple(unit for unit in releasing if unit not in gone)
        elif unasked:
            self._ask()
            releasing += tuple(unasked)
        else:  # a pod may hold what is asked back for as long as it lives, so calm is to ask no more
            releasing = () if self.calm else self._change(pool, releasing)
        await self._write(pool, releasing)
        if not self.calm and self.chance.random() < 0.02:
            await self.api.delete(f"{PATH}/{self.name}")
            self.done["object deleted"] += 1

    async def look(self) -> NodeIPPool | None:
        try:
            found: NodeIPPool = from_object(await self.api.get(f"{PATH}/{self.name}", {}))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return found

    def _change(self, pool: NodeIPPool, releasing: tuple[str, ...]) -> tuple[str, ...]:
        """Grow, start a release, cancel one, or nothing. None of `releasing` is acknowledged in this version."""
        what = self.chance.randrange(5)
        size = len(self.model.addresses())
        if what == 0 and size < LARGE:
            self.grow(self.chance.randrange(1, 20))
        elif what == 1 and size > SMALL and not releasing:
            free = [unit for unit in self.model.nic if unit not in pool.status.released]
            self.done["releases begun"] += 1
            self._ask()
            return tuple(self.chance.sample(free, min(10, len(free))))
        elif what == 2 and releasing:
            self.done["releases cancelled"] += 1
            return ()
        return releasing

    def _ask(self) -> None:
        self.request = f"{self.chance.getrandbits(64):x}"

    def grow(self, count: int) -> None:
        """New addresses, some of them a block of sixteen."""
        for _ in range(count):
            self._number += 1
            self.model.granted([f"10.240.{2 + self._number // 200}.{1 + self._number % 200}"])
        if self.chance.random() < 0.2:
            self.model.granted([f"10.240.{100 + self._number // 16}.{self._number % 16 * 16}/28"])

    async def _write(self, pool: NodeIPPool | None, releasing: tuple[str, ...]) -> None:
        view = pool.status.agent.view if pool and pool.status.agent else None
        listed = supply(list(self.model.nic), releasing)
        status = replace(listed, release_request=self.request, confirmed_view=view)
        version = pool.metadata.resource_version if pool else None
        body = apply_body(self.name, status=status, resource_version=version)
        await self._apply(f"{PATH}/{self.name}/status", body)

    async def _apply(self, path: str, body: dict[str, Any]) -> None:
        await self.api.apply(path, {"fieldManager": OPERATOR_MANAGER, "force": "true"}, body)
