"""Removes invalid entries from a declared host state: one of them must not cost the node the rest.

Pure. The NodeIPPool's schema rejects such entries; a file, an older schema or a defect elsewhere may still bring one.
Otherwise one bad range would prevent the whole rule set: no source check, no refusal of IMDS, no translation.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import replace

from vnetpods_agent.dataplane import HostState, Nic


def understood(state: HostState) -> tuple[HostState, tuple[str, ...]]:
    """The state without entries that are no IPv4 network or address, and those entries' errors."""
    refused: list[str] = []

    def networks(where: str, entries: Iterable[str]) -> tuple[str, ...]:
        """Host bits are accepted: "10.0.0.7/8" means 10.0.0.0/8."""
        whole = []
        for entry in entries:
            try:
                ipaddress.IPv4Network(entry, strict=False)
            except ValueError as error:
                refused.append(f"{where}: {error}")
            else:
                whole.append(entry)
        return tuple(whole)

    nics: list[Nic] = []
    for nic in state.nics:
        if not networks(f"primary address of NIC {nic.mac}", [f"{nic.primary_address}/32"]):
            continue
        prefixes = networks(f"prefix of NIC {nic.mac}", nic.prefixes)
        addresses = networks(f"address of NIC {nic.mac}", nic.addresses)
        nics.append(replace(nic, prefixes=prefixes, addresses=addresses))
    direct = networks("direct CIDR", state.direct)
    return replace(state, nics=tuple(nics), direct=direct), tuple(refused)
