"""Writes one NIC once: tells which errors call for another read, and learns a subnet's limits from refusals.

Shared by the reconciler and the command `nic`. Nothing here retries, or waits for more than a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Protocol

import structlog

from vnetpods_operator import errors
from vnetpods_operator.planning import model
from vnetpods_operator.planning.machine import Machine, Nic
from vnetpods_operator.planning.model import Change
from vnetpods_operator.planning.subnets import Subnets

MOMENT = 0.1
"""Delay in seconds before a NIC that somebody else has changed is read again."""

log = structlog.get_logger()


class Usages(Protocol):
    """Known usage of subnets (see vnetpods_operator.azure.networks)."""

    async def left(self, subnet: str) -> int | None:
        """Addresses left, as reported by Azure."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes NICs; records refusals in `subnets`."""

    subnets: Subnets
    usages: Usages
    random: Random

    async def write(
        self, machine: Machine, nic: Nic, change: Change, told: Mapping[str, str]
    ) -> Nic | errors.AzureError:
        """Returns the NIC as written, or the error if a new plan may succeed at once; raises any other error.

        `told`: fields for the log.
        """
        try:
            after = await machine.write(nic, change)
        except errors.Changed:
            await asyncio.sleep(MOMENT * self.random.uniform(1.0, 1.2))
            return errors.Busy("somebody else changed the NIC each time it was to be written", "Changed")
        except (errors.SubnetFull, errors.Refused) as error:
            if change.blocks:  # which code says that no aligned block is free is not documented
                self.subnets.no_blocks(nic.subnet, _now())
            elif isinstance(error, errors.SubnetFull):
                await self._subnet_full(nic, change, error, told)
            else:
                raise
            return error
        return after

    async def _subnet_full(self, nic: Nic, change: Change, error: errors.SubnetFull, told: Mapping[str, str]) -> None:
        asked = change.add + model.BLOCK * change.blocks + len(change.restore)
        left = await self.usages.left(nic.subnet)
        limits = self.subnets.refused(nic.subnet, asked, left, _now())
        again_in = round(max(0.0, limits.grow_after - _now()))
        log.warning(
            "subnet full", subnet=nic.subnet, asked=asked, left=left, again_in=again_in, error=str(error), **told
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
