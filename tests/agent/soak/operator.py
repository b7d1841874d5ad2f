"""The operator's half of a NodeIPPool, played by the rules and carelessly: it grows and shrinks the pool, cancels
releases, writes late and twice, dies at bad moments and is away for a while, and sometimes somebody deletes the object.

The NIC is in the model. An address comes onto the NIC before it is listed, under a random name; it leaves when
`releasing` and `released` both have it in one object version that repeats our releaseRequest, and the NIC has it under
the very name that was asked for (docs/architecture.md, "Release handshake"). It may come back, as another entry.
Everything goes through the real API server, which may be away: then nothing happens.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from tests.agent.machine import supply
from tests.agent.soak.model import Model
from vnetpods_agent.kube import ApiError, KubeApi, KubeError
from vnetpods_api import NodeIPPool, Spec, apply_body, from_object
from vnetpods_api.names import GROUP, OPERATOR_MANAGER, PLURAL, VERSION

PATH = f"/apis/{GROUP}/{VERSION}/{PLURAL}"
SMALL, LARGE = 60, 110
PERIOD = 0.5
DIES, LATE, TWICE = 0.03, 0.1, 0.1
AWAY = (3.0, 20.0)
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
    asked: dict[str, str] = field(default_factory=dict)  # what the request stands for: unit -> ipConfiguration
    former: list[str] = field(default_factory=list)  # units that have left the NIC
    done: Counter[str] = field(default_factory=Counter)
    _number: int = 0

    async def run(self) -> None:
        while True:
            await self.try_step()
            await asyncio.sleep(PERIOD)

    def _luck(self, share: float) -> bool:
        return not self.calm and self.chance.random() < share

    async def _die(self) -> None:
        """The next one knows nothing of what this one has asked for."""
        self.done["deaths"] += 1
        self.request, self.asked = None, {}
        await asyncio.sleep(self.chance.uniform(*AWAY))

    async def try_step(self) -> None:
        """A step that may be lost to another writer or to an API server that is away."""
        if self._luck(DIES):
            await self._die()
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
            await self._write(None)
            self.done["object made"] += 1
            return
        listed = {unit: name for interface in pool.status.interfaces for unit, name in interface.names.items()}
        agent = pool.status.agent
        answered = bool(self.asked) and agent is not None and agent.release_request == self.request
        released = {unit for unit in pool.status.released if listed.get(unit) == self.model.nic.get(unit) is not None}
        gone = [u for u, name in self.asked.items() if answered and u in released and self.model.nic.get(u) == name]
        unasked = released - self.asked.keys()
        if gone:
            self.model.removed(gone)
            self.former += gone
            self.done["units removed"] += len(gone)
            for unit in gone:
                del self.asked[unit]
            if self._luck(DIES):
                await self._die()  # the NIC is changed, and nobody has been told
                return
        elif unasked:
            self._ask({*self.asked, *unasked})
        elif answered and (kept := self.asked.keys() & {*pool.status.kept}):
            self._ask(self.asked.keys() - kept)
        else:  # a pod may hold what is asked back for as long as it lives, so calm is to ask no more
            self._change(pool, released)
        if self._luck(LATE):
            await asyncio.sleep(self.chance.uniform(0, 4))
        await self._write(pool)
        if self._luck(TWICE):
            await self._write(pool)
        if self._luck(0.02):
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

    def _change(self, pool: NodeIPPool, released: set[str]) -> None:
        """Grow, start a release, cancel one, or nothing. None of what is asked for is acknowledged in this version."""
        what = self.chance.randrange(5)
        size = len(self.model.addresses())
        if self.calm:
            self._ask(released & self.asked.keys())
        elif what == 0 and size < LARGE:
            self.grow(self.chance.randrange(1, 20))
        elif what == 1 and size > SMALL and not self.asked:
            free = [unit for unit in self.model.nic if unit not in released]
            self.done["releases begun"] += 1
            self._ask(self.chance.sample(free, min(10, len(free))))
        elif what == 2 and self.asked:
            self.done["releases cancelled"] += 1
            self._ask(())

    def _ask(self, units: Iterable[str]) -> None:
        """Of what the NIC holds now; another question has another name."""
        asked = {unit: self.model.nic[unit] for unit in sorted(units) if unit in self.model.nic}
        if asked != self.asked:
            self.request, self.asked = f"{self.chance.getrandbits(64):x}", asked

    def grow(self, count: int) -> None:
        """Addresses: new ones, some of them a block of sixteen, and such as were on the NIC before."""
        units = []
        for _ in range(count):
            if self.former and self.chance.random() < 0.5:
                units.append(self.former.pop(self.chance.randrange(len(self.former))))
                continue
            self._number += 1
            units.append(f"10.240.{2 + self._number // 200}.{1 + self._number % 200}")
        if self.chance.random() < 0.2:
            units.append(f"10.240.{100 + self._number // 16}.{self._number % 16 * 16}/28")
        fresh = [unit for unit in units if unit not in self.model.nic]
        self.model.granted({unit: f"vnetpods-{self.chance.getrandbits(32):08x}" for unit in fresh})

    async def _write(self, pool: NodeIPPool | None) -> None:
        view = pool.status.agent.view if pool and pool.status.agent else None
        listed = supply(list(self.model.nic), list(self.asked), names=self.model.nic)
        status = replace(listed, release_request=self.request, confirmed_view=view)
        version = pool.metadata.resource_version if pool else None
        body = apply_body(self.name, status=status, resource_version=version)
        await self._apply(f"{PATH}/{self.name}/status", body)

    async def _apply(self, path: str, body: dict[str, Any]) -> None:
        await self.api.apply(path, {"fieldManager": OPERATOR_MANAGER, "force": "true"}, body)
