"""Reads the FORWARD chain of legacy iptables from the kernel, with CAP_NET_ADMIN alone.

The program `iptables-legacy` opens a raw socket even for listing (CAP_NET_RAW) and a lock under /run; the agent's
container has neither. So the program would fail there, and an unreadable chain must not count as empty. Any IPv4 socket
accepts the same request.

Formats: include/uapi/linux/netfilter_ipv4/ip_tables.h, `struct ipt_getinfo`, `ipt_get_entries`, `ipt_entry`, and
netfilter/x_tables.h, `xt_entry_match`, `xt_standard_target`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vnetpods_agent.dataplane import DataPlaneError

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES
_INFO = struct.Struct("=32sI5I5III")  # name; valid hooks; first entry and policy of each hook; entries; bytes
_ENTRIES = struct.Struct("=32sI4x")  # name; bytes
_ENTRY = struct.Struct("=4s4s4s4s16s16s16s16sHBB4xHH20x")
_TARGET = struct.Struct("=H29sBi")  # size; name; revision; verdict of a standard target
_FORWARD = 2  # NF_INET_FORWARD
_DROP, _ACCEPT = -1, -2


@dataclass(frozen=True, slots=True)
class LegacyRule:
    """`incoming` and `outgoing` in iptables' notation ("azv+"); `narrow`: the rule matches on something else, too."""

    incoming: str
    outgoing: str
    narrow: bool
    target: str


def forward_chain(names: Path = Path("/proc/net/ip_tables_names")) -> tuple[list[LegacyRule], str]:
    """Rules and policy ("ACCEPT", "DROP"); no rules and ACCEPT if the table isn't in use (a query would create it).

    Raises DataPlaneError.
    """
    try:
        if "filter" not in names.read_text().split():
            return [], "ACCEPT"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            return _read(asking)
    except FileNotFoundError:
        return [], "ACCEPT"
    except OSError as error:
        raise DataPlaneError("read", "the FORWARD chain of iptables-legacy", error.errno or 0) from error


def _read(asking: socket.socket) -> tuple[list[LegacyRule], str]:
    # the kernel expects the table's name in the buffer that it fills
    info = _INFO.unpack(_asked(asking, _GET_INFO, b"filter".ljust(_INFO.size, b"\0")))
    first, policy, size = info[2 + _FORWARD], info[7 + _FORWARD], info[13]
    head = _ENTRIES.pack(b"filter", size)
    table = _asked(asking, _GET_ENTRIES, head.ljust(_ENTRIES.size + size, b"\0"))[_ENTRIES.size :]
    rules = [rule for offset, rule in _rules(table) if first <= offset < policy]
    return rules, next(rule.target for offset, rule in _rules(table) if offset == policy)


def _rules(table: bytes) -> Iterator[tuple[int, LegacyRule]]:
    offset = 0
    while offset < len(table):
        fields = _ENTRY.unpack_from(table, offset)
        source_mask, destination_mask, into, out, _, _, protocol = fields[2:9]
        inverted, target_offset, next_offset = fields[10:]
        narrow = any((*source_mask, *destination_mask, protocol, inverted)) or _matches(table, offset, target_offset)
        _, name, _, verdict = _TARGET.unpack_from(table, offset + target_offset)
        target = _text(name) or {_DROP: "DROP", _ACCEPT: "ACCEPT"}.get(verdict, "")
        yield offset, LegacyRule(_text(into), _text(out), narrow, target)
        offset += next_offset


def _matches(table: bytes, offset: int, target_offset: int) -> bool:
    """Whether a rule has an extension's match other than a comment."""
    at = offset + _ENTRY.size
    while at < offset + target_offset:
        size, name = struct.unpack_from("=H29s", table, at)
        if name.rstrip(b"\0") != b"comment":
            return True
        at += size
    return False


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _asked(asking: socket.socket, option: int, buffer: bytes) -> bytes:
    """getsockopt(2) with an input buffer, which Python's own lacks."""
    import ctypes  # noqa: PLC0415 - a megabyte, needed on few nodes

    libc = ctypes.CDLL(None, use_errno=True)
    answer = ctypes.create_string_buffer(buffer, len(buffer))
    size = ctypes.c_uint(len(buffer))
    if libc.getsockopt(asking.fileno(), socket.IPPROTO_IP, option, answer, ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), "getsockopt")
    return answer.raw[: size.value]
