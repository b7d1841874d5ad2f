"""The ledger's records and their SQLite schema: plain data, and the statements that store and load it.

Schema (format 3). The key is the CNI specification's: "the combination of network name, container ID and interface
name" identifies an attachment. Whatever happens in memory, UNIQUE(address) rules out a double assignment, and two
triggers rule out an address that is both held and promised back.
    attachment(network, container_id, ifname, address, netns, nic_mac, mtu, boot_id, created,
               pod_namespace, pod_name, pod_uid, gso_max_size, host_name,   these two since format 2
               attached_boottime, arrival)                                  since format 3
    rest(address, since, boot_id, boottime, number)   an address's last release: cool-down and, by number, order of use;
                              since, by the wall clock, is written for earlier versions and read from theirs
    retired(name, unit)       ipConfigurations that this node never uses again, the newest RETIRED of them
    withdrawn(unit, name)     listed units that are promised back: for versions without names
    meta(name, value)         format, and readable_by: the lowest format whose code may read and write this file
A later format may add tables, and columns with defaults; this code names its columns, so it reads such a file and
leaves the rest alone as long as readable_by allows it. So an upgrade can be rolled back. An empty `withdrawn.name`
comes from a version without names, or from a list without them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, Moment, Pod, expand

FORMAT = 3
READABLE_BY = 1
RETIRED = 8192
"""Number of retired names kept: an old list could list them again."""


def _block(address: str) -> str:
    """SQL: the /28 of an address."""
    network = f"rtrim({address}, '0123456789')"
    return f"{network} || (CAST(substr({address}, length({network}) + 1) AS INTEGER) & 240) || '/28'"


def _in(address: str, unit: str) -> str:
    """SQL: whether the address is one of the unit."""
    first = f"substr({unit}, 1, length({unit}) - 3)"
    return f"({unit} = {address} OR ({unit} LIKE '%/28' AND {_block(first)} = {_block(address)}))"


_PROMISED = f"""
CREATE TABLE retired (name TEXT PRIMARY KEY, unit TEXT NOT NULL) STRICT;
CREATE TRIGGER held_is_not_promised BEFORE INSERT ON withdrawn
WHEN EXISTS (SELECT 1 FROM attachment WHERE {_in("address", "NEW.unit")})
BEGIN SELECT RAISE(ABORT, 'a pod holds an address of it'); END;
CREATE TRIGGER promised_is_not_held BEFORE INSERT ON attachment
WHEN EXISTS (SELECT 1 FROM withdrawn WHERE {_in("NEW.address", "unit")})
BEGIN SELECT RAISE(ABORT, 'the address is promised back'); END;
"""  # noqa: S608 - constants
UPGRADES: Mapping[int, str] = {
    1: """
ALTER TABLE attachment ADD COLUMN gso_max_size INTEGER NOT NULL DEFAULT 65536;
ALTER TABLE attachment ADD COLUMN host_name TEXT NOT NULL DEFAULT '';
""",
    2: f"""
ALTER TABLE attachment ADD COLUMN attached_boottime REAL NOT NULL DEFAULT 0;
ALTER TABLE attachment ADD COLUMN arrival INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rest ADD COLUMN boot_id TEXT NOT NULL DEFAULT '';
ALTER TABLE rest ADD COLUMN boottime REAL NOT NULL DEFAULT 0;
ALTER TABLE rest ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE withdrawn ADD COLUMN name TEXT NOT NULL DEFAULT '';
DELETE FROM withdrawn WHERE EXISTS (SELECT 1 FROM attachment WHERE {_in("address", "unit")});
{_PROMISED}
""",  # noqa: S608 - constants
}
"""For every earlier format, the statements that upgrade it to the next."""
_SCHEMA = f"""
CREATE TABLE attachment (
  network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
  address TEXT NOT NULL UNIQUE,
  netns TEXT NOT NULL, nic_mac TEXT NOT NULL, mtu INTEGER NOT NULL, boot_id TEXT NOT NULL, created REAL NOT NULL,
  pod_namespace TEXT, pod_name TEXT, pod_uid TEXT,
  gso_max_size INTEGER NOT NULL DEFAULT 65536, host_name TEXT NOT NULL DEFAULT '',
  attached_boottime REAL NOT NULL DEFAULT 0, arrival INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (network, container_id, ifname)
) STRICT;
CREATE TABLE rest (
  address TEXT PRIMARY KEY, since REAL NOT NULL,
  boot_id TEXT NOT NULL DEFAULT '', boottime REAL NOT NULL DEFAULT 0, number INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE withdrawn (unit TEXT PRIMARY KEY, name TEXT NOT NULL DEFAULT '') STRICT, WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
{_PROMISED}"""
_COLUMNS = (
    "network, container_id, ifname, address, netns, nic_mac, mtu, boot_id, created, pod_namespace, pod_name, pod_uid, "
    "gso_max_size, host_name, attached_boottime, arrival"
)
_INSERT = f"INSERT INTO attachment ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"  # noqa: S608 - constants
_DELETE = "DELETE FROM attachment WHERE network = ? AND container_id = ? AND ifname = ?"
_SELECT = f"SELECT {_COLUMNS} FROM attachment ORDER BY arrival, created"  # noqa: S608 - constants
_REST_COLUMNS = "address, since, boottime, boot_id, number"
_NEXT = "(SELECT COALESCE(MAX(number), 0) + 1 FROM rest)"
_REST = f"""INSERT OR REPLACE INTO rest ({_REST_COLUMNS})
SELECT address, ?, ?, ?, {_NEXT} FROM attachment WHERE network = ? AND container_id = ? AND ifname = ?"""  # noqa: S608
_RESTED = f"INSERT INTO rest ({_REST_COLUMNS}) VALUES (?, ?, ?, ?, {_NEXT})"  # noqa: S608 - constants
_RESTS = "SELECT address, since, boottime, boot_id FROM rest ORDER BY number, since"
_WITHDRAW = "INSERT OR REPLACE INTO withdrawn (name, unit) VALUES (?, ?)"
_RETIRE = "INSERT OR IGNORE INTO retired (name, unit) VALUES (?, ?)"
_OLD = f"DELETE FROM retired WHERE rowid <= (SELECT max(rowid) FROM retired) - {RETIRED}"  # noqa: S608 - a number
_HELD = f"DELETE FROM withdrawn WHERE {_in('?1', 'unit')}"  # noqa: S608 - constants


class UnknownFormat(Exception):  # noqa: N818 - its name is the finding
    """The file's format is missing, or too old or too new for this version."""


@dataclass(slots=True)
class Content:
    """The whole content of the ledger."""

    attachments: dict[AttachmentKey, Attachment] = field(default_factory=dict)
    rests: dict[Address, Moment] = field(default_factory=dict)
    withdrawn: dict[str, str] = field(default_factory=dict)
    retired: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Content:
        return Content(dict(self.attachments), dict(self.rests), dict(self.withdrawn), dict(self.retired))


@dataclass(frozen=True, slots=True)
class Assign:
    """Assigns the attachment its address."""

    attachment: Attachment


@dataclass(frozen=True, slots=True)
class Claim:
    """Turns `reservation` into the attachment."""

    reservation: AttachmentKey
    attachment: Attachment


@dataclass(frozen=True, slots=True)
class Adopt:
    """As Assign, for a pod that already has its address."""

    attachment: Attachment


@dataclass(frozen=True, slots=True)
class Release:
    """Releases the attachment's address, if it exists, as of `since`; None: no pod ever had the address."""

    key: AttachmentKey
    since: Moment | None


@dataclass(frozen=True, slots=True)
class Retire:
    """Takes these ipConfigurations, (name, unit) each, out of use on this node for good. Goes with a Withdraw."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Records listed units, (name, unit) each, as promised back; the name is empty when the list has none."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Reinstate:
    """Drops units that are no longer listed as they were when promised back."""

    units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Drops the release times of these addresses."""

    addresses: tuple[Address, ...]


FACTS = (Adopt, Release, Reinstate)
Operation = Assign | Claim | Adopt | Release | Retire | Withdraw | Reinstate | Forget


def enter(content: Content, operations: Sequence[Operation]) -> None:  # noqa: C901, PLR0912 - one case each
    """Applies to the mirror what `statements` does to the file."""
    for operation in operations:
        match operation:
            case Assign(attachment):
                content.attachments[attachment.key] = attachment
            case Claim(reservation, attachment):
                content.attachments.pop(reservation, None)
                content.attachments[attachment.key] = attachment
            case Adopt(attachment):
                content.attachments[attachment.key] = attachment
                for unit in [unit for unit in content.withdrawn if attachment.address in expand(unit)]:
                    del content.withdrawn[unit]
            case Release(key, since):
                released = content.attachments.pop(key, None)
                if released is not None and since is not None:
                    content.rests.pop(released.address, None)  # keeps the order of release
                    content.rests[released.address] = since
            case Retire(entries):
                for name, unit in entries:
                    content.retired.setdefault(name, unit)
                for name in list(content.retired)[:-RETIRED]:
                    del content.retired[name]
            case Withdraw(entries):
                content.withdrawn.update((unit, name) for name, unit in entries)
            case Reinstate(units):
                for unit in units:
                    content.withdrawn.pop(unit, None)
            case Forget(addresses):
                for address in addresses:
                    content.rests.pop(address, None)


def overtake(content: Content, facts: Sequence[Operation]) -> Content:
    """Applies the facts of the time when the file couldn't be read to the file's content.

    During that time pods were recognised by their interfaces: the file's fuller record of such a pod stays, and the
    file's holder of such a pod's address loses it.
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
        case Assign(attachment):
            yield _DELETE, [_key(attachment.key)]  # the same container in a new namespace
            yield _INSERT, [_row(attachment)]
        case Claim(reservation, attachment):
            yield _DELETE, [_key(reservation), _key(attachment.key)]
            yield _INSERT, [_row(attachment)]
        case Adopt(attachment):  # the pod has the address, so any promise is void
            yield _HELD, [(attachment.address,)]
            yield _DELETE, [_key(attachment.key)]
            yield _INSERT, [_row(attachment)]
        case Release(key, since):
            if since is not None:
                yield _REST, [(since.wall, since.boottime, since.boot_id, *_key(key))]
            yield _DELETE, [_key(key)]
        case Retire(entries):
            yield _RETIRE, entries
            yield _OLD, [()]
        case Withdraw(entries):
            yield _WITHDRAW, entries
        case Reinstate(units):
            yield "DELETE FROM withdrawn WHERE unit = ?", [(unit,) for unit in units]
        case Forget(addresses):
            yield "DELETE FROM rest WHERE address = ?", [(address,) for address in addresses]


def rewrite(connection: sqlite3.Connection, content: Content) -> None:
    for table in ("attachment", "rest", "withdrawn", "retired"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - constants
    connection.executemany(_INSERT, [_row(attachment) for attachment in content.attachments.values()])
    for address, since in content.rests.items():
        connection.execute(_RESTED, (address, since.wall, since.boottime, since.boot_id))
    connection.executemany(_RETIRE, list(content.retired.items()))
    connection.executemany(_WITHDRAW, [(name, unit) for unit, name in content.withdrawn.items()])


def create(connection: sqlite3.Connection) -> None:
    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}")
    connection.execute("INSERT INTO meta VALUES ('format', ?), ('readable_by', ?)", (str(FORMAT), str(READABLE_BY)))
    connection.execute("COMMIT")


def bring_up_to_date(
    connection: sqlite3.Connection, upgrades: Mapping[int, str] = UPGRADES, wanted: int = FORMAT
) -> None:
    """Checks the file's integrity, and upgrades it to the format `wanted` in one transaction.

    A later format that this code may write is kept. Raises sqlite3.Error, UnknownFormat.
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
    """Reads the whole content. Raises sqlite3.Error."""
    return Content(
        attachments={attachment.key: attachment for attachment in map(_attachment, connection.execute(_SELECT))},
        rests={Address(address): Moment(*since) for address, *since in connection.execute(_RESTS)},
        withdrawn=dict(connection.execute("SELECT unit, name FROM withdrawn")),
        retired=dict(connection.execute("SELECT name, unit FROM retired ORDER BY rowid")),
    )


def _key(key: AttachmentKey) -> tuple[str, str, str]:
    return key.network, key.container_id, key.ifname


def _row(a: Attachment) -> tuple[Any, ...]:
    pod = (a.pod.namespace, a.pod.name, a.pod.uid) if a.pod else (None, None, None)
    nic = a.nic_mac, a.mtu, a.boot_id, a.created
    return (
        *(*_key(a.key), a.address, a.netns, *nic, *pod),
        *(a.gso_max_size, a.host_name, a.attached_boottime, a.arrival),
    )


def _attachment(row: tuple[Any, ...]) -> Attachment:
    network, container_id, ifname, address, netns, nic_mac, mtu, boot_id, created, *rest = row
    namespace, name, uid, gso, host_name, boottime, arrival = rest
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
        boottime,
        arrival,
    )
