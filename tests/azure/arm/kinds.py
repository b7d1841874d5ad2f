"""The resource types this cloud knows."""

from __future__ import annotations

from tests.azure.arm import balancers, machines, networks, nics, plain, scalesets, subnets
from tests.azure.arm.model import Kind

ALL = (
    Kind(nics.TYPE, nics.write, nics.written, nics.remove),
    Kind(networks.TYPE, networks.write, networks.written, networks.remove, networks.shown),
    Kind(subnets.TYPE, subnets.write, subnets.store_space, subnets.remove, subnets.shown),
    Kind(networks.PEERING, networks.write_peering, networks.written_peering, networks.remove_peering),
    Kind(machines.TYPE, machines.write, machines.written, machines.remove),
    *plain.KINDS,
    *balancers.KINDS,
    *scalesets.KINDS,
)

BY_TYPE = {kind.type.lower(): kind for kind in ALL}
