"""Captures a machine's link into a pcap file.

A packet socket in the fabric's event loop; the file format is libpcap's classic one (magic a1b2c3d4, microseconds,
Ethernet).
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from pathlib import Path

ALL_PROTOCOLS = 0x0003
SNAP_LENGTH = 65_535
ETHERNET = 1


class Capture:
    """Captures from its creation until `close`."""

    def __init__(self, device: str, path: Path) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        self._socket.setblocking(False)
        self._socket.bind((device, 0))
        self._file = path.open("wb")
        self._file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAP_LENGTH, ETHERNET))
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)
        self.packets = 0

    def _read(self) -> None:
        while True:
            try:
                frame = self._socket.recv(SNAP_LENGTH)
            except OSError:  # nothing more at present, or the link is gone
                return
            seconds, fraction = divmod(time.time(), 1)
            self._file.write(struct.pack("<IIII", int(seconds), int(fraction * 1e6), len(frame), len(frame)) + frame)
            self.packets += 1

    def close(self) -> None:
        self._read()
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._file.close()
