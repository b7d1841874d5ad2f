from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.agent.powercut import traced

SAVER = """
import os, sys
from pathlib import Path
from vnetpods_kit.atomicfile import save

os.write(1, b"begin")
save(Path(sys.argv[1]), b"content")
os.write(1, b"done")
"""


async def test_what_is_saved_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_is_said(
    tmp_path: Path,
) -> None:
    """Else a power cut leaves an empty file under the name, or the old one after all."""
    state = tmp_path / "state"
    state.mkdir()
    calls = await asyncio.to_thread(traced, [sys.executable, "-c", SAVER, str(state / "pool.json")], tmp_path)
    texts = [call.texts for call in calls]
    during = calls[texts.index((b"begin",)) + 1 : texts.index((b"done",))]
    opened: dict[int, bytes] = {}
    steps = []
    for call in during:
        if call.name == "openat":
            opened[call.result] = call.texts[0]
        elif call.name == "rename":
            steps.append((call.name, call.texts[1]))
        elif call.name in {"write", "fsync", "fdatasync"}:
            steps.append((call.name, opened[call.numbers[0]]))
    folder = str(state).encode()
    temporary, path = folder + b"/.pool.json.tmp", folder + b"/pool.json"
    assert steps == [("write", temporary), ("fsync", temporary), ("rename", path), ("fsync", folder)]
