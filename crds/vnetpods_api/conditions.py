"""Conditions of a NodeIPPool and the closed list of their reasons.

The types are those of kstatus: Ready if the node's pods can get addresses, Reconciling while a change is in progress,
Stalled only if a person must act. AgentReady is the agent's. A reason is the same word in condition, Event, log and
metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum

import msgspec


class ConditionType(StrEnum):
    """Types of conditions; AgentReady is the agent's, the others are the operator's."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    AGENT_READY = "AgentReady"


class ConditionStatus(StrEnum):
    """Whether the condition holds; Unknown while that can't be determined."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Reasons of conditions. Comments tell their meaning, and what to do if action is needed."""

    # nothing to do
    POOL_READY = "PoolReady"  # enough addresses
    PENDING = "Pending"  # first observed, nothing known yet
    GROWING = "Growing"  # addresses are being added
    RELEASING = "Releasing"  # addresses are being released
    REPAIRING = "Repairing"  # the NIC is being repaired
    IDLE = "Idle"  # no change in progress
    PAUSED = "Paused"  # spec.paused is set: unset it to resume
    AGENT_SERVING = "AgentServing"  # the node's agent serves the container runtime
    AGENT_STARTING = "AgentStarting"  # the node's agent knows no address yet
    AGENT_STOPPED = "AgentStopped"  # the node's agent was stopped gracefully
    # wait, it is retried
    THROTTLED = "Throttled"  # Azure requested a wait
    AZURE_UNAVAILABLE = "AzureUnavailable"  # Azure does not respond, or returns a transient error
    CONFLICT = "Conflict"  # another writer keeps changing the NIC
    SUBNET_FULL = "SubnetFull"  # no address left: enlarge the subnet or free addresses
    AT_CAPACITY = "AtCapacity"  # the NIC or the configured maximum is reached
    AGENT_SILENT = "AgentSilent"  # the agent hasn't acknowledged a release, nothing is removed until it does
    OPERATOR_SILENT = "OperatorSilent"  # the agent serves, but pods wait and the operator does not run: check it
    ADDRESS_LOST = "AddressLost"  # an assigned address vanished from the NIC and is requested again
    # a person must act
    NO_PROVIDER_ID = "NoProviderID"  # the Node has no spec.providerID: is the cloud provider or the kubelet's flag set?
    FOREIGN_PROVIDER = "ForeignProvider"  # the Node's providerID is of another cloud
    MACHINE_NOT_FOUND = "MachineNotFound"  # the virtual machine does not exist
    MACHINE_SHARED = "MachineShared"  # another Node names the same virtual machine: delete the one that is gone
    UNSUPPORTED_MACHINE = "UnsupportedMachine"  # an unsupported kind of machine
    NO_INTERFACE = "NoInterface"  # the machine has no NIC that may carry pod addresses
    FORBIDDEN = "Forbidden"  # the operator's role lacks an action
    SIGN_IN_REFUSED = "SignInRefused"  # the operator's identity can't sign in: an expired secret, another tenant
    MACHINE_NOT_ALLOWED = "MachineNotAllowed"  # the Node names a machine that the configuration does not allow
    REFUSED = "Refused"  # Azure refuses the change and would again: the message has Azure's text
    AGENT_DOUBLED = "AgentDoubled"  # two agents report for the node, nothing is released until one of them is gone
    NETWORK_UNAVAILABLE = "NetworkUnavailable"  # the Node repels pods although its agent serves: clear its condition
    INVALID_SIZING = "InvalidSizing"  # spec.sizing and the configuration contradict each other
    NIC_UNREADABLE = "NicUnreadable"  # a NIC of the machine can't be read, pods get the others' addresses
    NIC_FAILED = "NicFailed"  # the NIC's provisioning state is Failed and repairing did not help
    NODE_MISSING = "NodeMissing"  # no Node has the pool's name: delete the pool
    POOL_REFUSED = "PoolRefused"  # (Event only) the API server refuses the pool's status: upgrade the CRD
    INTERNAL_ERROR = "InternalError"  # a bug in the operator: its log has the traceback


class Condition(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, frozen=True):
    """One item of status.conditions; `last_transition_time` in RFC 3339, UTC."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int = 0


def condition(type_: ConditionType, status: ConditionStatus, reason: Reason, message: str, now: datetime) -> Condition:
    """A condition whose last transition is `now` (an aware datetime)."""
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Condition(type=type_, status=status, reason=reason, message=message[:4096], last_transition_time=stamp)


def merge(old: Iterable[Condition], new: Sequence[Condition]) -> list[Condition]:
    """`new`, each with the transition time of its predecessor in `old` if the status is unchanged."""
    before = {c.type: c for c in old}
    merged = []
    for c in new:
        previous = before.get(c.type)
        if previous is not None and previous.status == c.status:
            c = msgspec.structs.replace(c, last_transition_time=previous.last_transition_time)  # noqa: PLW2901
        merged.append(c)
    return merged


def find(conditions: Iterable[Condition], type_: ConditionType) -> Condition | None:
    """The condition of that type, or None."""
    return next((c for c in conditions if c.type == type_), None)
