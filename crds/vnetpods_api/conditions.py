"""Conditions of a NodeIPPool and the closed list of their reasons.

The types are those kstatus reads: Ready for "can this node's pods be given addresses", Reconciling while a change is
under way, Stalled only when a person must act. AgentReady is the agent's. The same word stands in condition, Event, log
and metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum

import msgspec


class ConditionType(StrEnum):
    """What a condition is about, and who writes it."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    AGENT_READY = "AgentReady"


class ConditionStatus(StrEnum):
    """Whether it holds; Unknown when nobody can say yet."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Why a condition is as it is. The comment says who must do what."""

    # nothing to do
    POOL_READY = "PoolReady"  # enough addresses
    PENDING = "Pending"  # first seen, nothing known yet
    GROWING = "Growing"  # addresses are being added
    RELEASING = "Releasing"  # addresses are being given back
    REPAIRING = "Repairing"  # the NIC is being put right
    IDLE = "Idle"  # no change under way
    PAUSED = "Paused"  # spec.paused is set: unset it to go on
    AGENT_SERVING = "AgentServing"  # the node's agent answers the container runtime
    AGENT_STARTING = "AgentStarting"  # the node's agent knows no address yet
    AGENT_STOPPED = "AgentStopped"  # the node's agent was stopped in good order
    # wait, it is retried
    THROTTLED = "Throttled"  # Azure asked us to wait
    AZURE_UNAVAILABLE = "AzureUnavailable"  # Azure does not answer or answers with a passing error
    CONFLICT = "Conflict"  # somebody else keeps changing the NIC
    SUBNET_FULL = "SubnetFull"  # no address left: enlarge the subnet or free addresses
    AT_CAPACITY = "AtCapacity"  # the NIC or the configured maximum is reached
    AGENT_SILENT = "AgentSilent"  # the agent hasn't acknowledged a release, nothing is removed until it does
    OPERATOR_SILENT = "OperatorSilent"  # the agent serves, but pods wait and the operator does not run: look at it
    ADDRESS_LOST = "AddressLost"  # an assigned address vanished from the NIC, it is asked for again
    # a person must act
    NO_PROVIDER_ID = (
        "NoProviderID"  # the Node says no spec.providerID: is the cloud provider or the kubelet's flag set?
    )
    FOREIGN_PROVIDER = "ForeignProvider"  # the Node's providerID is of another cloud
    MACHINE_NOT_FOUND = "MachineNotFound"  # the virtual machine does not exist
    MACHINE_SHARED = "MachineShared"  # another Node names the same virtual machine: delete the one that is gone
    UNSUPPORTED_MACHINE = "UnsupportedMachine"  # a kind of machine that is not handled
    NO_INTERFACE = "NoInterface"  # the machine has no NIC that could carry addresses
    FORBIDDEN = "Forbidden"  # the operator's role lacks an action
    SIGN_IN_REFUSED = "SignInRefused"  # the operator's identity can't sign in: an expired secret, another tenant
    MACHINE_NOT_ALLOWED = "MachineNotAllowed"  # the Node names a machine that the configuration does not allow
    REFUSED = "Refused"  # Azure refuses the change and would again: the message has its words
    AGENT_DOUBLED = "AgentDoubled"  # two agents report for the node, nothing is released until one of them is gone
    NETWORK_UNAVAILABLE = "NetworkUnavailable"  # the Node keeps pods away though its agent serves: clear its condition
    INVALID_SIZING = "InvalidSizing"  # spec.sizing and the configuration contradict each other
    NIC_UNREADABLE = "NicUnreadable"  # a NIC of the machine can't be read, pods get the others' addresses
    NIC_FAILED = "NicFailed"  # the NIC's provisioning state is Failed and repairing did not help
    NODE_MISSING = "NodeMissing"  # there is no Node of the pool's name: delete the pool
    POOL_REFUSED = "PoolRefused"  # (Event only) the API server refuses the pool's status: upgrade the CRD
    INTERNAL_ERROR = "InternalError"  # a fault of the operator itself: its log says where


class Condition(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, frozen=True):
    """One entry of status.conditions; `last_transition_time` in RFC 3339, UTC."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int = 0


def condition(type_: ConditionType, status: ConditionStatus, reason: Reason, message: str, now: datetime) -> Condition:
    """A condition that changes at `now` (aware)."""
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Condition(type=type_, status=status, reason=reason, message=message[:4096], last_transition_time=stamp)


def merge(old: Iterable[Condition], new: Sequence[Condition]) -> list[Condition]:
    """`new`, each with the transition time of its forerunner in `old` when the status is still the same."""
    before = {c.type: c for c in old}
    merged = []
    for c in new:
        previous = before.get(c.type)
        if previous is not None and previous.status == c.status:
            c = msgspec.structs.replace(c, last_transition_time=previous.last_transition_time)  # noqa: PLW2901
        merged.append(c)
    return merged


def find(conditions: Iterable[Condition], type_: ConditionType) -> Condition | None:
    """The condition of that type, if there is one."""
    return next((c for c in conditions if c.type == type_), None)
