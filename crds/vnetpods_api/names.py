"""Names that several packages use. They are part of the product's interface: changing one breaks users' manifests."""

from __future__ import annotations

from typing import Final

GROUP: Final = "vnetpods.io"
VERSION: Final = "v1alpha1"
KIND: Final = "NodeIPPool"
PLURAL: Final = "nodeippools"

OPERATOR_MANAGER: Final = "vnetpods-operator"
"""Field manager of the operator's server-side applies."""
AGENT_MANAGER: Final = "vnetpods-agent"
"""Field manager of the agent's server-side applies."""

IP_CONFIGURATION_PREFIX: Final = "vnetpods-"
"""Prefix of our ipConfigurations' names; all others on a NIC are owned by others and never touched."""
MANAGED_LABEL: Final = "vnetpods.io/managed"
"""On a Node, with the value "false": the operator does not manage the node."""

CNI_TYPE: Final = "vnetpods"
"""Name of the CNI network and of the plugin's executable."""
