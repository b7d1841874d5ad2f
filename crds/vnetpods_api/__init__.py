"""The API of vnetpods: the NodeIPPool, the reasons of its conditions, and names that all packages share."""

from vnetpods_api.conditions import Condition, ConditionStatus, ConditionType, Reason, condition, find, merge
from vnetpods_api.nodeippool import (
    AgentReport,
    Interface,
    ManagedFields,
    Metadata,
    NodeIPPool,
    OwnerReference,
    Sizing,
    Spec,
    Status,
    Usage,
    apply_body,
    from_object,
    to_object,
)

__all__ = [
    "AgentReport",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "Interface",
    "ManagedFields",
    "Metadata",
    "NodeIPPool",
    "OwnerReference",
    "Reason",
    "Sizing",
    "Spec",
    "Status",
    "Usage",
    "apply_body",
    "condition",
    "find",
    "from_object",
    "merge",
    "to_object",
]
