from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from tests.agent.machine import until
from vnetpods_agent.sync.file import FileSource
from vnetpods_agent.sync.source import Report, SourceUnavailable
from vnetpods_api import Status, Usage
from vnetpods_kit.atomicfile import save

NIC = {"name": "eth0", "mac": "00:0d:3a:1b:c7:21", "subnet": "pods", "primaryAddress": "10.0.0.4"}


def written(path: Path, *addresses: str) -> None:
    save(path, msgspec.json.encode({"interfaces": [NIC | {"addresses": addresses}], "directCIDRs": ["10.0.0.0/8"]}))


async def test_it_is_heard_now_and_when_it_changes_and_not_when_it_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    source = FileSource(path)
    heard = source.watch()
    first = asyncio.ensure_future(anext(heard))
    await until(lambda: "No such file" in source.trouble)
    written(path, "10.0.0.5")
    supply = await first
    assert [i.addresses for i in supply.interfaces] == [("10.0.0.5",)]
    assert supply.status.direct_cidrs == ("10.0.0.0/8",)
    assert supply.live
    second = asyncio.ensure_future(anext(heard))
    path.write_text("interfaces: nonsense")
    await until(lambda: "Expected `array`" in source.trouble)
    written(path, "10.0.0.6")
    assert [i.addresses for i in (await second).interfaces] == [("10.0.0.6",)]
    assert source.trouble == ""


async def test_reports_lie_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    await FileSource(path).publish(Report(Usage(free=3), released=("10.0.0.5",)))
    report = msgspec.json.decode((tmp_path / "pool.yaml.report.json").read_bytes(), type=Status)
    assert (report.usage, report.released) == (Usage(free=3), ("10.0.0.5",))


async def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"report\.json can't be written"):
        await FileSource(tmp_path / "none" / "pool.yaml").publish(Report(Usage()))


def test_saving_replaces_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save(path, b"one")
    save(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No such file"):
        save(tmp_path / "none" / "file", b"three")
