"""What ledger and kernel each say about who holds which address, so that a test can hold the two against each other."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.agent.machine import Machine

NAMELESS = "-"
Holders = dict[str, str]
"""`container/ifname` → address."""


@dataclass(frozen=True)
class Truths:
    """All four agree when an agent has nothing left to do. `routes` are the addresses that lead to a pod."""

    ledger: Holders
    kernel: Holders
    routes: frozenset[str]

    @property
    def agreed(self) -> bool:
        return self.ledger == self.kernel and self.routes == frozenset(self.ledger.values())


def read(node: Machine) -> Truths:
    return Truths(ledger(node.state / "ledger.db"), kernel(node.name), frozenset(node.routes()))


def ledger(path: Path) -> Holders:
    """From the file itself, beside the agent that may be writing it, or just making it."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'attachment'").fetchone():
            return {}
        rows = connection.execute("SELECT container_id || '/' || ifname, address FROM attachment").fetchall()
    return dict(rows)


def kernel(netns: str) -> Holders:
    """From the aliases of the pods' host ends; each exactly once. One that has no alias (yet) is named by itself."""
    shown = subprocess.run(["ip", "-n", netns, "-j", "link", "show"], capture_output=True, text=True, check=True).stdout
    held: Holders = {}
    for link in json.loads(shown):
        if link["ifname"].startswith("azv"):
            _, address, _, key, *_ = link.get("ifalias", f"vnetpods {NAMELESS} - {link['ifname']}").split(" ")
            assert key not in held, f"{key} has two host ends"
            held[key] = address
    return held
