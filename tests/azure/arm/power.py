"""Starting, stopping, rebooting and re-imaging machines: the POST actions of VMs and scale-set instances.

Pure. The state is kept in the machine's memory: `running`, `boots` (a new number is a new boot), `images` (a new number
is a new disk). The fabric mirrors it; instance views show it.
"""

from __future__ import annotations

from tests.azure.arm.errors import ArmError
from tests.azure.arm.store import Body, Resource

ACTIONS = ("start", "restart", "poweroff", "deallocate", "reimage", "redeploy")
WORDS = {True: ("running", "VM running"), False: ("deallocated", "VM deallocated")}


def act(machine: Resource, action: str) -> None:
    """Carries out one action, whose name is compared without regard to case."""
    name = action.lower()
    if name not in ACTIONS:
        raise ArmError(404, "InvalidResourceType", f"The action {action} is not known on {machine.id}.")
    memory = machine.memory
    was_running = running(machine)
    memory["running"] = name not in ("poweroff", "deallocate")
    if memory["running"] and (name != "start" or not was_running):
        memory["boots"] = boots(machine) + 1
    if name == "reimage":
        memory["images"] = images(machine) + 1


def running(machine: Resource) -> bool:
    return bool(machine.memory.get("running", True))


def boots(machine: Resource) -> int:
    return int(machine.memory.get("boots", 0))


def images(machine: Resource) -> int:
    return int(machine.memory.get("images", 0))


def instance_view(machine: Resource) -> Body:
    code, words = WORDS[running(machine)]
    return {
        "statuses": [
            {
                "code": f"ProvisioningState/{machine.state.lower()}",
                "level": "Info",
                "displayStatus": "Provisioning done",
            },
            {"code": f"PowerState/{code}", "level": "Info", "displayStatus": words},
        ]
    }
