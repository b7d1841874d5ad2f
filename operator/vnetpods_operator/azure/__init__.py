"""Everything that talks to Azure; nothing else in the operator imports azure.*."""

from vnetpods_operator.azure.client import Arm, Watcher, load, opened
from vnetpods_operator.azure.networks import Network, Networks
from vnetpods_operator.azure.scale_set import ScaleSetInstance
from vnetpods_operator.azure.virtual_machine import VirtualMachine
from vnetpods_operator.planning.machine import Machine, MachineId

__all__ = ["Arm", "Network", "Networks", "Watcher", "load", "machine", "opened"]


def machine(arm: Arm, id_: MachineId) -> Machine:
    """Returns the implementation for the machine's kind."""
    return VirtualMachine(arm, id_) if id_.scale_set is None else ScaleSetInstance(arm, id_)
