"""Names that more than one room uses. They are the product's interface: changing one breaks somebody's manifest."""

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
"""Names of our ipConfigurations on a NIC start with it; all others are somebody else's and never touched."""
MANAGED_LABEL: Final = "vnetpods.io/managed"
"""On a Node, with the value "false": leave this node alone."""

CNI_TYPE: Final = "vnetpods"
"""Name of the CNI network and of the plugin's executable."""
