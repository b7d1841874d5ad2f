"""Records durably which pod holds which address: survives a crash, a power cut and an upgrade.

SQLite in WAL mode with synchronous=FULL. When the outcome of `commit` arrives, its operations are on the disk. All file
access happens in the ledger's own thread; operations submitted during a commit share the next one, so fifty ADDs cost
two or three disk syncs. The file is read only at the agent's start: the thread keeps a mirror.

Damage: an unusable file is set aside as `ledger.db.damaged-<time>`. At start the caller then rebuilds the content from
the kernel; later it comes from the mirror, also when the file is deleted while in use (`look`). An unwritable disk
fails ADDs, but a release always succeeds: the mirror drops the row, and the first transaction that succeeds again
writes the whole mirror before anything new. An unreadable file (`unread`) isn't touched until it can be read: `load`
then merges its content with the events since, and until then no address may be assigned.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from vnetpods_agent.ipam.ledger.schema import (
    FACTS,
    Content,
    Operation,
    UnknownFormat,
    bring_up_to_date,
    create,
    enter,
    overtake,
    read,
    rewrite,
    statements,
)
from vnetpods_agent.ipam.worker import Job, Outcome, WorkerThread, settle
from vnetpods_kit.atomicfile import sync_folder
from vnetpods_kit.faultpoints import AgentPoint, reach

REBUILT = "LedgerRebuilt"
UNAVAILABLE = "LedgerUnavailable"
_DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_IDLE = 0.5  # seconds without work before the WAL is checkpointed into the file
_CHECKPOINT_BYTES = 256 * 1024
_AUTOCHECKPOINT_PAGES = 4096  # under load without a pause: 16 MB


log = structlog.get_logger()


class LedgerError(Exception):
    """├── LedgerUnavailable   the disk refuses; nothing was written
    └── AddressTaken        another attachment holds the address
    """


class LedgerUnavailable(LedgerError): ...  # noqa: N818 - its name is the finding


class AddressTaken(LedgerError): ...  # noqa: N818


class Ledger(WorkerThread):
    """The ledger's thread and its file."""

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.time, notify: Callable[[str, str], None] = lambda *_: None
    ) -> None:
        """`notify(reason, message)` is called in the loop, once per trouble after the start."""
        super().__init__("ledger")
        self._path = path
        self._clock = clock
        self._notify = notify
        self._connection: sqlite3.Connection | None = None
        self._mirror = Content()
        self._inode = 0
        self._behind = False  # the file lacks part of the mirror
        self._since: list[Operation] | None = []  # facts while the file can't be read; None: it was read
        self.trouble = ""  # why writes fail at present
        self.unread = True  # the caller doesn't have the file's content yet

    # from the loop

    async def load(self) -> tuple[Content, str]:
        """At start, and again while `unread`: the file's content, and why it is incomplete ("" when it isn't, "new"
        when there was no file).
        """
        content, trouble = await self.submit(self._load)
        self.unread = content is None
        return content or Content(), trouble

    def commit(self, *operations: Operation) -> Outcome[None]:
        """Commits all operations or none, durable when the outcome arrives. Raises AddressTaken, LedgerUnavailable (a
        Release counts even then).
        """
        return self.submit(self._apply, operations)

    # in the thread

    def run(self) -> None:
        closing = False
        while not closing:
            try:
                jobs = [self._jobs.get(timeout=_IDLE)]
            except queue.Empty:
                if self._behind:
                    self._transact([])
                self._checkpoint()
                continue
            with contextlib.suppress(queue.Empty):
                while True:
                    jobs.append(self._jobs.get_nowait())
            closing = None in jobs
            self.work([job for job in jobs if job is not None])
        self._disconnect()

    def work(self, jobs: Sequence[Job]) -> None:
        self.busy_since = time.monotonic()
        commits = [job for job in jobs if job.call == self._apply]
        for job in jobs:
            if job.call != self._apply:
                job.do()
        if commits:
            self._transact(commits)
        self.busy_since = None
        self._loop.call_soon_threadsafe(settle, jobs)

    def _transact(self, jobs: Sequence[Job]) -> None:
        """One durable transaction for all jobs; a job whose own operations are refused fails alone."""
        if self._since is not None:
            self._refuse(jobs)
            return
        try:
            try:
                self._write(jobs)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._disconnect()
                aside = self._set_aside()
                log.exception("the ledger was damaged while in use", aside=str(aside))
                said = (
                    f"{self._path} was damaged while in use ({error}); it was set aside as {aside}, memory has it all"
                )
                self._say(REBUILT, said)
                self._write(jobs)
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            self._behind = True
            said = f"{self._path} can't be written ({error}); {_advice(error)}"
            if not self.trouble:
                self._say(UNAVAILABLE, said)
            self.trouble = said
            self._refuse(jobs)
        else:
            self.trouble = ""
            for job in jobs:
                if job.error is None:
                    enter(self._mirror, job.args[0])

    def _refuse(self, jobs: Sequence[Job]) -> None:
        """Fails the jobs, but keeps their facts (FACTS), which have happened regardless."""
        for job in jobs:
            job.error = LedgerUnavailable(self.trouble)
            facts = [operation for operation in job.args[0] if isinstance(operation, FACTS)]
            enter(self._mirror, facts)
            if self._since is not None:
                self._since += facts

    def _say(self, reason: str, said: str) -> None:
        self._loop.call_soon_threadsafe(self._notify, reason, said)

    def _write(self, jobs: Sequence[Job]) -> None:
        connection = self._connected()
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self._behind:
                rewrite(connection, self._mirror)
            for job in jobs:
                job.error = None
                connection.execute("SAVEPOINT job")
                try:
                    job.do()
                    if job.error is not None:
                        raise job.error
                except sqlite3.IntegrityError as error:
                    connection.execute("ROLLBACK TO job")
                    job.error = AddressTaken(f"{job.args[0]}: {error}")
                connection.execute("RELEASE job")
            reach(AgentPoint.LEDGER_WRITTEN)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        reach(AgentPoint.LEDGER_COMMITTED)
        self._behind = False

    def _apply(self, operations: Sequence[Operation]) -> None:
        connection = self._connected()
        for operation in operations:
            for statement, rows in statements(operation):
                connection.executemany(statement, rows)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._look_into_file(lambda _: None)
        assert self._connection is not None
        return self._connection

    def _look_into_file(self, examine: Callable[[sqlite3.Connection], None]) -> None:
        """Opens or creates the file; `examine` runs on an existing one before anything in it is touched."""
        new = not self._path.exists()
        with contextlib.ExitStack() as undo:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=1.0)
            undo.callback(connection.close)
            if not new:
                examine(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}")
            if new:
                create(connection)
                sync_folder(self._path.parent)
                self._behind = True
            undo.pop_all()
        self._connection, self._inode = connection, self._path.stat().st_ino

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def look(self) -> None:
        """Writes the file anew from memory if it was deleted or replaced: SQLite keeps writing to a deleted file, and
        those writes are lost with the process.
        """
        if self._connection is None or self._since is not None:
            return
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                return
        self._disconnect()
        self._behind = True
        with contextlib.suppress(OSError):  # if the folder can't be recreated, the write reports it
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._set_aside()
        log.warning("the ledger was taken away while in use", path=str(self._path))
        self._say(REBUILT, f"{self._path} was deleted or replaced while in use; it was written anew from memory")
        self._transact([])

    def _checkpoint(self) -> None:
        """When idle: checkpoints a large WAL into the file, so that no ADD pays for it."""
        if self._connection is not None and _size(self._path.with_name(self._path.name + "-wal")) > _CHECKPOINT_BYTES:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _load(self) -> tuple[Content | None, str]:
        trouble = "" if self._path.exists() else "new"
        try:
            try:
                self._look_into_file(self._remember)
            except (sqlite3.DatabaseError, UnknownFormat) as error:
                if isinstance(error, sqlite3.DatabaseError) and not _is_damage(error):
                    raise
                trouble = f"{self._path} is unusable ({error}); it was set aside as {self._set_aside()}"
                self._look_into_file(self._remember)
        except (sqlite3.Error, OSError) as error:
            self._mirror = overtake(Content(), self._since or ())
            self.trouble = f"{self._path} can't be opened ({error}); {_advice(error)}"
            return None, self.trouble
        self._behind = self._behind or bool(self.trouble)
        self._since = None
        return self._mirror.copy(), trouble

    def _remember(self, connection: sqlite3.Connection) -> None:
        bring_up_to_date(connection)
        self._mirror = overtake(read(connection), self._since or ())

    def _set_aside(self) -> Path:
        aside = self._path.with_name(f"{self._path.name}.damaged-{int(self._clock())}")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(aside.with_name(aside.name + suffix))
        sync_folder(self._path.parent)
        self._behind = True
        return aside


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file's content is at fault. A new file wouldn't cure a disk error (full, read-only, I/O)."""
    code = getattr(error, "sqlite_errorcode", None)  # our own errors have none
    return code is None or code & 0xFF in _DAMAGE


def _advice(error: Exception) -> str:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another process has it locked, such as sqlite3 or a backup"
    return "is the disk full or read-only?"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
