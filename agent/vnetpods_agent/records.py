"""What the ledger records, and how that lies in SQLite: plain data, and the statements between it and a connection.

Schema (format 2). The key is the CNI specification's: "the combination of network name, container ID and interface
name" names an attachment. UNIQUE(address) makes a double assignment impossible whatever happens in memory.
    attachment(network, container_id, ifname, address, netns, nic_mac, mtu, boot_id, created,
               pod_namespace, pod_name, pod_uid, gso_max_size, host_name)   the last two since format 2
    rest(address, since)      when an address was released last: cool-down and order of use
    withdrawn(unit)           units this node will not use again (release handshake)
    meta(name, value)         format, and readable_by: the lowest format whose code may read and write this file
A later format may add columns with defaults and tables; this code names its columns, so it reads such a file and leaves
the rest alone as long as readable_by allows it. That is how an upgrade can be taken back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, Pod

FORMAT = 2
READABLE_BY = 1
UPGRADES: Mapping[int, str] = {
    1: """
ALTER TABLE attachment ADD COLUMN gso_max_size INTEGER NOT NULL DEFAULT 65536;
ALTER TABLE attachment ADD COLUMN host_name TEXT NOT NULL DEFAULT '';
"""
}
"""For every earlier format, the statements that make the next one of it."""
_SCHEMA = """
CREATE TABLE attachment (
  network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
  address TEXT NOT NULL UNIQUE,
  netns TEXT NOT NULL, nic_mac TEXT NOT NULL, mtu INTEGER NOT NULL, boot_id TEXT NOT NULL, created REAL NOT NULL,
  pod_namespace TEXT, pod_name TEXT, pod_uid TEXT,
  gso_max_size INTEGER NOT NULL DEFAULT 65536, host_name TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (network, container_id, ifname)
) STRICT;
CREATE TABLE rest (address TEXT PRIMARY KEY, since REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE withdrawn (unit TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""
_COLUMNS = (
    "network, container_id, ifname, address, netns, nic_mac, mtu, boot_id, created, pod_namespace, pod_name, pod_uid, "
    "gso_max_size, host_name"
)
_INSERT = f"INSERT INTO attachment ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"  # noqa: S608 - constants
_DELETE = "DELETE FROM attachment WHERE network = ? AND container_id = ? AND ifname = ?"
_SELECT = f"SELECT {_COLUMNS} FROM attachment ORDER BY created"  # noqa: S608 - constants
_REST = """INSERT OR REPLACE INTO rest (address, since)
SELECT address, ? FROM attachment WHERE network = ? AND container_id = ? AND ifname = ?"""


class UnknownFormat(Exception):  # noqa: N818 - its name is the finding
    """The file was written by a version too far from this one."""


@dataclass(slots=True)
class Content:
    """Everything the ledger knows."""

    attachments: dict[AttachmentKey, Attachment] = field(default_factory=dict)
    rests: dict[Address, float] = field(default_factory=dict)
    withdrawn: dict[str, None] = field(default_factory=dict)

    def copy(self) -> Content:
        return Content(dict(self.attachments), dict(self.rests), dict(self.withdrawn))


@dataclass(frozen=True, slots=True)
class Assign:
    """The attachment holds its address from now on."""

    attachment: Attachment


@dataclass(frozen=True, slots=True)
class Adopt:
    """As Assign, for a pod that has its address already."""

    attachment: Attachment


@dataclass(frozen=True, slots=True)
class Release:
    """The attachment, if there is one, gives its address back at `since`."""

    key: AttachmentKey
    since: float


@dataclass(frozen=True, slots=True)
class Withdraw:
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reinstate:
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Of these addresses not even the time of their release matters any more."""

    addresses: tuple[Address, ...]


FACTS = (Adopt, Release)
Operation = Assign | Adopt | Release | Withdraw | Reinstate | Forget


def enter(content: Content, operations: Sequence[Operation]) -> None:
    """What `statements` does to the file, done to the mirror."""
    for operation in operations:
        match operation:
            case Assign(attachment) | Adopt(attachment):
                content.attachments[attachment.key] = attachment
            case Release(key, since):
                released = content.attachments.pop(key, None)
                if released is not None:
                    content.rests[released.address] = since
            case Withdraw(units):
                content.withdrawn.update(dict.fromkeys(units))
            case Reinstate(units):
                for unit in units:
                    content.withdrawn.pop(unit, None)
            case Forget(addresses):
                for address in addresses:
                    content.rests.pop(address, None)


def overtake(content: Content, facts: Sequence[Operation]) -> Content:
    """What has happened while the file couldn't be read, entered into what it holds.

    Pods were recognised by their interfaces then, of which the file may know more; and an address that such a pod has
    is no longer that of whom the file names.
    """
    for fact in facts:
        if isinstance(fact, Adopt):
            found = fact.attachment
            if found.key in content.attachments and content.attachments[found.key].address == found.address:
                continue
            for former in [a for a in content.attachments.values() if a.address == found.address]:
                del content.attachments[former.key]
        enter(content, [fact])
    return content


def statements(operation: Operation) -> Iterator[tuple[str, Sequence[tuple[Any, ...]]]]:
    match operation:
        case Assign(attachment) | Adopt(attachment):
            yield _DELETE, [_key(attachment.key)]  # the same container in a new namespace
            yield _INSERT, [_row(attachment)]
        case Release(key, since):
            yield _REST, [(since, *_key(key))]
            yield _DELETE, [_key(key)]
        case Withdraw(units):
            yield "INSERT OR IGNORE INTO withdrawn (unit) VALUES (?)", [(unit,) for unit in units]
        case Reinstate(units):
            yield "DELETE FROM withdrawn WHERE unit = ?", [(unit,) for unit in units]
        case Forget(addresses):
            yield "DELETE FROM rest WHERE address = ?", [(address,) for address in addresses]


def rewrite(connection: sqlite3.Connection, content: Content) -> None:
    for table in ("attachment", "rest", "withdrawn"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - constants
    connection.executemany(_INSERT, [_row(attachment) for attachment in content.attachments.values()])
    connection.executemany("INSERT INTO rest (address, since) VALUES (?, ?)", list(content.rests.items()))
    connection.executemany("INSERT INTO withdrawn (unit) VALUES (?)", [(unit,) for unit in content.withdrawn])


def create(connection: sqlite3.Connection) -> None:
    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}")
    connection.execute("INSERT INTO meta VALUES ('format', ?), ('readable_by', ?)", (str(FORMAT), str(READABLE_BY)))
    connection.execute("COMMIT")


def bring_up_to_date(
    connection: sqlite3.Connection, upgrades: Mapping[int, str] = UPGRADES, wanted: int = FORMAT
) -> None:
    """Looks whether the file is whole, and takes it to the format `wanted` in one transaction.

    A later format that this code may write stays what it is. Raises sqlite3.Error, UnknownFormat.
    """
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"malformed: {verdict}")
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    try:
        written_as, readable_by = int(meta["format"]), int(meta["readable_by"])
    except (KeyError, ValueError) as error:
        raise UnknownFormat(f"it doesn't say its format: {meta}") from error
    if written_as > wanted and readable_by > wanted:
        raise UnknownFormat(f"its format {written_as} is for {readable_by} and later, this is {wanted}")
    for earlier in range(written_as, wanted):
        if earlier not in upgrades:
            raise UnknownFormat(f"its format {earlier} is too old for this version, which writes {wanted}")
    if written_as < wanted:
        steps = "".join(upgrades[earlier] for earlier in range(written_as, wanted))
        said = f"UPDATE meta SET value = {wanted} WHERE name = 'format';"  # noqa: S608 - a number
        connection.executescript(f"BEGIN IMMEDIATE; {steps} {said} COMMIT;")


def read(connection: sqlite3.Connection) -> Content:
    """All of it. Raises sqlite3.Error."""
    return Content(
        attachments={attachment.key: attachment for attachment in map(_attachment, connection.execute(_SELECT))},
        rests={Address(address): since for address, since in connection.execute("SELECT address, since FROM rest")},
        withdrawn={unit: None for (unit,) in connection.execute("SELECT unit FROM withdrawn")},
    )


def _key(key: AttachmentKey) -> tuple[str, str, str]:
    return key.network, key.container_id, key.ifname


def _row(a: Attachment) -> tuple[Any, ...]:
    pod = (a.pod.namespace, a.pod.name, a.pod.uid) if a.pod else (None, None, None)
    return (*_key(a.key), a.address, a.netns, a.nic_mac, a.mtu, a.boot_id, a.created, *pod, a.gso_max_size, a.host_name)


def _attachment(row: tuple[Any, ...]) -> Attachment:
    network, container_id, ifname, address, netns, nic_mac, mtu, boot_id, created, *pod, gso, host_name = row
    namespace, name, uid = pod
    return Attachment(
        AttachmentKey(network, container_id, ifname),
        Address(address),
        netns,
        nic_mac,
        mtu,
        boot_id,
        created,
        Pod(namespace, name, uid or "") if namespace is not None else None,
        gso,
        host_name,
    )
