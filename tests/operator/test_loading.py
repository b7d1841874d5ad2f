"""A leader goes on renewing while Azure's SDK is loaded, which on a starved machine takes longer than a Lease lasts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.operator.worlds import World

pytestmark = pytest.mark.apiserver

PROGRAM = """
import importlib.abc, sys, threading

class Noting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("azure.mgmt.network.aio", "azure.mgmt.compute.aio"):
            with open(NOTES, "a") as notes:
                print(name, threading.current_thread() is threading.main_thread(), file=notes)

NOTES = sys.argv.pop(1)
sys.meta_path.insert(0, Noting())
from vnetpods_operator.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


async def test_the_sdk_is_loaded_beside_the_event_loop(world: World, tmp_path: Path) -> None:
    node, _ = await world.worker("one")
    world.config()
    notes = tmp_path / "notes"
    arguments = [str(notes), "--config", str(world.path), "--kubeconfig", str(world.kubeconfig)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, *arguments)
    try:
        await world.until_allocated(node, 4)
    finally:
        process.terminate()
        await process.wait()
    assert sorted(set(notes.read_text().splitlines())) == [
        "azure.mgmt.compute.aio False",
        "azure.mgmt.network.aio False",
    ]
