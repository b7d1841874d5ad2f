"""A disk whose power fails: what it would hold at every moment of a program's life, going by the system calls that
strace saw.

A file has what was written before its last sync, a folder the names it had at its own. Of what came after, nothing is
there, or any part of it: whole writes, or only the first sectors of one.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Files = dict[str, bytes]

_CALLS = "openat,close,write,pwrite64,ftruncate,fsync,fdatasync,unlink,unlinkat,rename,renameat,renameat2"
_LINE = re.compile(r"(\d+\.\d+) (\w+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_NUMBER = re.compile(r"(?<!\w)\d+(?!\w)")
_SECTOR = 512


@dataclass(frozen=True)
class SystemCall:
    """`numbers` and `texts` are its arguments, each in their order."""

    name: str
    numbers: tuple[int, ...]
    texts: tuple[bytes, ...]
    result: int

    @property
    def syncs(self) -> bool:
        return self.name in {"fsync", "fdatasync"}


def traced(command: Sequence[str], folder: Path) -> list[SystemCall]:
    """Runs the command to its end; its successful calls that concern files, of all threads in the order of time."""
    trace = ["strace", "-ff", "-ttt", "-xx", "-s", str(1 << 20), "-e", f"trace={_CALLS}", "-o", str(folder / "trace")]
    subprocess.run([*trace, *command], check=True, stdout=subprocess.DEVNULL)
    lines = [line for file in folder.glob("trace.*") for line in file.read_text().splitlines()]
    found = sorted(filter(None, map(_LINE.match, lines)), key=lambda match: float(match[1]))
    return [_call(match) for match in found if int(match[4]) >= 0]


def _call(match: re.Match[str]) -> SystemCall:
    texts = _TEXT.findall(match[3])
    assert not any(shortened for _, shortened in texts)
    numbers = _NUMBER.findall(_TEXT.sub("", match[3]))
    return SystemCall(
        match[2],
        tuple(map(int, numbers)),
        tuple(bytes.fromhex(text.replace("\\x", "")) for text, _ in texts),
        int(match[4]),
    )


@dataclass(frozen=True)
class _Write:
    offset: int
    data: bytes

    def on(self, content: bytearray) -> None:
        end = self.offset + len(self.data)
        content.extend(bytes(max(0, end - len(content))))
        content[self.offset : end] = self.data

    def torn(self, chance: random.Random) -> _Write:
        return _Write(self.offset, self.data[: _SECTOR * chance.randrange(1 + len(self.data) // _SECTOR)])


@dataclass(frozen=True)
class _Resize:
    size: int

    def on(self, content: bytearray) -> None:
        content.extend(bytes(max(0, self.size - len(content))))
        del content[self.size :]

    def torn(self, _: random.Random) -> _Resize:
        return self


@dataclass
class _File:
    synced: bytes = b""
    unsynced: list[_Write | _Resize] = field(default_factory=list)

    def sync(self) -> None:
        self.synced, self.unsynced = self._with(self.unsynced), []

    def partly(self, chance: random.Random) -> bytes:
        survived = [change for change in self.unsynced if chance.random() < 0.5]
        return self._with([change.torn(chance) if chance.random() < 0.2 else change for change in survived])

    def _with(self, changes: Sequence[_Write | _Resize]) -> bytes:
        content = bytearray(self.synced)
        for change in changes:
            change.on(content)
        return bytes(content)


class Disk:
    """The files of one folder, without those that only live in memory (SQLite's -shm)."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._names: dict[str, _File] = {}
        self._synced: dict[str, _File] = {}
        self._open: dict[int, _File | None] = {}  # by descriptor; None is the folder

    def sees(self, call: SystemCall) -> None:
        match call.name:
            case "openat":
                self._opened(call.texts[0].decode(), call.result)
            case "close":
                self._open.pop(call.numbers[0], None)
            case "unlink" | "unlinkat":
                self._names.pop(self._name(call.texts[0].decode()), None)
            case "rename" | "renameat" | "renameat2":
                assert not any(self._name(path.decode()) for path in call.texts), "not expected of SQLite"
            case _ if call.numbers[0] in self._open:
                self._changed(call, self._open[call.numbers[0]])

    def _opened(self, path: str, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        name = self._name(path)
        if path == self._folder:
            self._open[descriptor] = None
        elif name and not name.endswith("-shm"):
            self._open[descriptor] = self._names.setdefault(name, _File())

    def _changed(self, call: SystemCall, file: _File | None) -> None:
        if file is None:
            assert call.syncs
            self._synced = dict(self._names)
        elif call.syncs:
            file.sync()
        elif call.name == "ftruncate":
            file.unsynced.append(_Resize(call.numbers[1]))
        else:
            assert call.name == "pwrite64", "SQLite says where it writes"
            file.unsynced.append(_Write(call.numbers[-1], call.texts[0][: call.result]))

    def _name(self, path: str) -> str:
        """Empty for a file of another folder."""
        folder, _, name = path.rpartition("/")
        return name if folder == self._folder else ""

    def least(self) -> Files:
        """What is there for certain."""
        return {name: file.synced for name, file in self._synced.items()}

    def more(self, chance: random.Random) -> Files:
        """What may be there, too."""
        names = chance.choice([self._names, self._synced])
        return {name: file.partly(chance) for name, file in names.items()}
