"""Walls that imports don't show."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_netlink_sockets_are_made_in_one_room() -> None:
    room = ROOT / "agent/vnetpods_agent/dataplane/netlink"
    files = [file for wing in ("agent", "operator", "kit", "crds") for file in (ROOT / wing).rglob("*.py")]
    makers = {file for file in files if "socket.AF_NETLINK" in file.read_text()}
    assert makers
    assert {file.parent for file in makers} == {room}
