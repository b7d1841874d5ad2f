from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, Moment, Pod, expand
from vnetpods_agent.ipam.ledger.schema import (
    FORMAT,
    RETIRED,
    UPGRADES,
    Adopt,
    Assign,
    Content,
    Forget,
    Operation,
    Reinstate,
    Release,
    Retire,
    UnknownFormat,
    Withdraw,
    bring_up_to_date,
    enter,
    read,
)
from vnetpods_agent.ipam.ledger.store import AddressTaken, Ledger, LedgerUnavailable


def attachment(number: int, address: int | None = None, container: str = "") -> Attachment:
    return Attachment(
        key=AttachmentKey("vnetpods", container or f"c{number}", "eth0"),
        address=Address(f"10.240.0.{number if address is None else address}"),
        netns=f"/run/netns/n{number}",
        nic_mac="00:0d:3a:1b:c7:21",
        mtu=1500,
        boot_id="boot",
        created=float(number),
        pod=Pod("default", f"web-{number}", f"uid-{number}") if number % 2 else None,
    )


@asynccontextmanager
async def opened(
    path: Path, notify: Callable[[str, str], None] = lambda *_: None
) -> AsyncIterator[tuple[Ledger, Content, str]]:
    ledger = Ledger(path, clock=lambda: 1_700_000_000.0, notify=notify)
    ledger.start()
    try:
        content, trouble = await ledger.load()
        yield ledger, content, trouble
    finally:
        await asyncio.to_thread(ledger.close)


async def content_of(path: Path) -> Content:
    async with opened(path) as (_, content, trouble):
        assert trouble == ""
        return content


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def test_what_was_committed_is_there_again(path: Path) -> None:
    async with opened(path) as (ledger, content, trouble):
        assert (content, trouble) == (Content(), "new")
        promised = ("vnetpods-9", "10.240.0.9"), ("", "10.240.0.16/28")
        await ledger.commit(Assign(attachment(5)), Retire(promised[:1]), Withdraw(promised))
        await ledger.commit(Adopt(attachment(6)))
        await ledger.commit(Release(attachment(5).key, Moment(100.0)), Reinstate(("10.240.0.9",)))
    found = await content_of(path)
    assert found == Content(
        {attachment(6).key: attachment(6)},
        {Address("10.240.0.5"): Moment(100.0)},
        {"10.240.0.16/28": ""},
        {"vnetpods-9": "10.240.0.9"},
    )


async def test_the_same_container_in_a_new_namespace_replaces_its_row(path: Path) -> None:
    async with opened(path) as (ledger, _, _):
        await ledger.commit(Assign(attachment(5, container="c")))
        await ledger.commit(Assign(attachment(7, address=5, container="c")))
    assert [a.netns for a in (await content_of(path)).attachments.values()] == ["/run/netns/n7"]


async def test_no_address_is_assigned_twice(path: Path) -> None:
    async with opened(path) as (ledger, _, _):
        outcomes = await asyncio.gather(
            ledger.commit(Assign(attachment(5))),
            ledger.commit(Assign(attachment(6, address=5))),
            ledger.commit(Assign(attachment(7))),
            return_exceptions=True,
        )
    assert [type(outcome) for outcome in outcomes] == [type(None), AddressTaken, type(None)]
    assert set((await content_of(path)).attachments) == {attachment(5).key, attachment(7).key}


async def test_all_operations_of_one_commit_or_none(path: Path) -> None:
    async with opened(path) as (ledger, _, _):
        await ledger.commit(Assign(attachment(5)))
        with pytest.raises(AddressTaken):
            await ledger.commit(Withdraw((("", "10.240.0.9"),)), Assign(attachment(6, address=5)))
    assert (await content_of(path)).withdrawn == {}


async def test_concurrent_commits_share_a_disk_sync(path: Path) -> None:
    """strace would count them; here the number of transactions shows it: the WAL has a commit record for each."""
    async with opened(path) as (ledger, _, _):
        await ledger.commit(Assign(attachment(1)))
        before = size_of_log(path)
        await asyncio.gather(*(ledger.commit(Assign(attachment(n))) for n in range(2, 52)))
        grown = size_of_log(path) - before
    assert grown < 10 * 5 * 4096  # alone, each would have written two pages or more


def size_of_log(path: Path) -> int:
    return path.with_name("ledger.db-wal").stat().st_size


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _nuls(path: Path) -> None:
    path.write_bytes(bytes(4096))


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _scribbled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)


def _too_new(path: Path) -> None:
    _meta(path, 7, 7)


def _foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


def _text(path: Path) -> None:
    path.write_text("{}\n" * 1000)


def _no_number(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = 'x' WHERE name = 'format'")


def _meta(path: Path, written_as: int, readable_by: int) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'format'", (str(written_as),))
        connection.execute("UPDATE meta SET value = ? WHERE name = 'readable_by'", (str(readable_by),))


DAMAGES = [_empty, _nuls, _cut, _scribbled, _too_new, _foreign, _text, _no_number]


def did(damage: Callable[[Path], None], path: Path) -> bytes:
    damage(path)
    return path.read_bytes()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
async def test_a_damaged_file_is_set_aside_and_a_new_one_takes_its_place(
    path: Path, damage: Callable[[Path], None]
) -> None:
    async with opened(path) as (ledger, _, _):
        await asyncio.gather(*(ledger.commit(Assign(attachment(n))) for n in range(1, 200)))
    damaged = did(damage, path)
    async with opened(path) as (ledger, content, trouble):
        assert content == Content()
        assert "set aside as" in trouble
        assert path.with_name("ledger.db.damaged-1700000000").read_bytes() == damaged
        await ledger.commit(Adopt(attachment(5)))
    assert set((await content_of(path)).attachments) == {attachment(5).key}


@pytest.mark.parametrize("damage", [_nuls, _scribbled, _cut], ids=lambda damage: damage.__name__.strip("_"))
async def test_damage_under_way_costs_nothing(path: Path, damage: Callable[[Path], None]) -> None:
    """Memory knows all that the file should hold."""
    told: list[str] = []
    async with opened(path, lambda *said: told.append(": ".join(said))) as (ledger, _, _):
        await asyncio.gather(*(ledger.commit(Assign(attachment(n))) for n in range(1, 100)))
        checkpoint(path)
        damage(path)
        for number in range(100, 140):  # the damaged page is met sooner or later
            await ledger.commit(Release(attachment(number - 99).key, Moment(1.0)), Assign(attachment(number)))
    found = await content_of(path)
    assert set(found.attachments) == {attachment(n).key for n in range(41, 140)}
    assert [line.partition(" (")[0] for line in told] == [f"LedgerRebuilt: {path} was damaged while in use"]


def _deleted(path: Path) -> None:
    clear(path.parent)


def _folder_deleted(path: Path) -> None:
    shutil.rmtree(path.parent)


def _replaced(path: Path) -> None:
    other = path.with_name("other.db")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize("away", [_deleted, _folder_deleted, _replaced], ids=lambda away: away.__name__.strip("_"))
async def test_a_file_that_is_taken_away_is_written_anew(tmp_path: Path, away: Callable[[Path], None]) -> None:
    """SQLite goes on in a file that has no name any more."""
    path = tmp_path / "state" / "ledger.db"
    path.parent.mkdir()
    told: list[str] = []
    async with opened(path, lambda reason, _: told.append(reason)) as (ledger, _, _):
        await ledger.commit(Assign(attachment(5)))
        await ledger.submit(ledger.look)
        assert told == []
        away(path)
        await ledger.commit(Assign(attachment(6)))
        for _ in range(2):
            await ledger.submit(ledger.look)
        await ledger.commit(Assign(attachment(7)))
    assert told == ["LedgerRebuilt"]
    assert set((await content_of(path)).attachments) == {attachment(n).key for n in (5, 6, 7)}


async def test_a_file_that_another_process_has_locked_is_called_that(path: Path) -> None:
    async with opened(path) as (ledger, _, _):
        await ledger.commit(Assign(attachment(5)))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerUnavailable, match=r"database is locked.*another process has it locked"):
                await ledger.commit(Assign(attachment(6)))


def checkpoint(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


async def test_a_format_one_later_that_allows_it_is_read_and_left_whole(path: Path) -> None:
    """An upgrade that is taken back: the later version's column and table are still there afterwards."""
    async with opened(path) as (ledger, _, _):
        await ledger.commit(Assign(attachment(5)))
    with sqlite3.connect(path) as connection:
        for table in ("attachment", "rest", "withdrawn", "retired", "meta"):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN mode TEXT NOT NULL DEFAULT 'transparent'")
        connection.execute("CREATE TABLE later (thing TEXT)")
        connection.execute("INSERT INTO later VALUES ('kept')")
    _meta(path, FORMAT + 1, 1)
    async with opened(path) as (ledger, content, trouble):
        assert (set(content.attachments), trouble) == ({attachment(5).key}, "")
        await ledger.commit(Assign(attachment(6)), Assign(attachment(7)), Release(attachment(7).key, Moment(1.0)))
        await ledger.commit(Withdraw((("", "10.240.0.9"),)))
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT mode FROM attachment").fetchall() == [("transparent",)] * 2
        assert connection.execute("SELECT thing FROM later").fetchall() == [("kept",)]
        assert dict(connection.execute("SELECT name, value FROM meta"))["format"] == str(FORMAT + 1)
    connection.close()


UPGRADE = {FORMAT: "ALTER TABLE attachment ADD COLUMN mode TEXT; UPDATE attachment SET mode = 'transparent';"}


async def test_of_retired_names_the_newest_are_kept(path: Path) -> None:
    async with opened(path) as (ledger, _, _):
        for start in range(0, 8500, 100):
            await ledger.commit(Retire(tuple((f"vnetpods-{n}", "10.240.0.9") for n in range(start, start + 100))))
        await ledger.commit(Retire((("vnetpods-500", "10.240.0.9"),)))  # again
        mirror = ledger._mirror.copy()
    found = await content_of(path)
    assert list(found.retired) == [f"vnetpods-{n}" for n in range(8500 - RETIRED, 8500)]
    assert found == mirror


FORMER = {
    "withdraw": "INSERT OR IGNORE INTO withdrawn (unit) VALUES ('{}')",
    "rest": "INSERT OR REPLACE INTO rest (address, since) VALUES ('{}', 1.0)",
    "reinstate": "DELETE FROM withdrawn WHERE unit = '{}'",
}
"""As the version of before writes (format 2)."""


class TestHeldAndPromised:
    """By the file itself: whoever writes to it, be it two agents, or one of before that knows of no names."""

    @pytest.mark.parametrize("unit", ["10.240.0.5", "10.240.0.0/28", "10.240.0.9/28"])
    async def test_one_address_is_never_both(self, path: Path, unit: str) -> None:
        async with opened(path) as (ledger, _, _):
            await ledger.commit(Assign(attachment(5)))
            with pytest.raises(AddressTaken, match="a pod holds an address of it"):
                await ledger.commit(Retire((("vnetpods-1", unit),)), Withdraw((("vnetpods-1", unit),)))
            with contextlib.closing(sqlite3.connect(path)) as other, pytest.raises(sqlite3.IntegrityError):
                other.execute(FORMER["withdraw"].format(unit))
            await ledger.commit(Release(attachment(5).key, Moment(1.0)), Withdraw((("vnetpods-1", unit),)))
            with pytest.raises(AddressTaken, match="promised back"):
                await ledger.commit(Assign(attachment(5)))
            await ledger.commit(Assign(attachment(16)))  # outside
        assert (await content_of(path)).retired == {}

    async def test_a_pod_that_has_it_all_the_same_is_the_fact(self, path: Path) -> None:
        async with opened(path) as (ledger, _, _):
            await ledger.commit(*(Op((("vnetpods-1", "10.240.0.0/28"),)) for Op in (Retire, Withdraw)))
            await ledger.commit(Adopt(attachment(5)))
            ledger._behind = True  # as after a disk that refused: all is written anew
            await ledger.commit(Adopt(attachment(6)))
        found = await content_of(path)
        assert (len(found.attachments), found.withdrawn, found.retired) == (2, {}, {"vnetpods-1": "10.240.0.0/28"})


class TestUpgrade:
    def test_a_file_of_the_second_format_is_taken_over_and_can_go_back(self, path: Path) -> None:
        """With what must not be in it: one address held and withdrawn, by two agents of before."""
        with contextlib.closing(sqlite3.connect(path)) as connection:
            script = (Path(__file__).parent / "data" / "ledger-format-1.sql").read_text()
            connection.executescript(script.replace("'format','1'", "'format','2'") + UPGRADES[1])
            connection.execute(FORMER["withdraw"].format("10.240.0.6"))
            connection.commit()
            bring_up_to_date(connection)
            assert read(connection).withdrawn == {"10.240.0.16/28": ""}
            connection.execute(FORMER["withdraw"].format("10.240.0.9"))
            connection.execute(FORMER["rest"].format("10.240.0.9"))
            connection.execute(FORMER["reinstate"].format("10.240.0.16/28"))
            assert (read(connection).withdrawn, len(read(connection).rests)) == ({"10.240.0.9": ""}, 2)

    def test_a_file_of_the_first_format_is_still_read(self, path: Path) -> None:
        """As the first release wrote it; every later version has to pass this."""
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript((Path(__file__).parent / "data" / "ledger-format-1.sql").read_text())
            bring_up_to_date(connection)
            assert read(connection) == Content(
                {a.key: a for a in (attachment(5), attachment(6))},
                {Address("10.240.0.7"): Moment(12.5)},
                {"10.240.0.16/28": ""},
            )

    async def test_what_the_first_release_wrote_into_a_file_of_today_is_read(self, path: Path) -> None:
        """A downgrade, pods that came meanwhile, and the upgrade again."""
        async with opened(path) as (ledger, _, _):
            await ledger.commit(Assign(replace(attachment(7), gso_max_size=62780, host_name="azv7")))
        with contextlib.closing(sqlite3.connect(path)) as connection:
            columns = "network, container_id, ifname, address, netns, nic_mac, mtu, boot_id, created, pod_namespace"
            for line in (Path(__file__).parent / "data" / "ledger-format-1.sql").read_text().splitlines():
                if line.startswith('INSERT INTO "attachment"'):
                    connection.execute(line.replace('"attachment"', f"attachment ({columns}, pod_name, pod_uid)"))
            connection.commit()
        found = (await content_of(path)).attachments.values()
        assert {a.address: (a.gso_max_size, a.host_name) for a in found} == {
            "10.240.0.5": (65536, ""),
            "10.240.0.6": (65536, ""),
            "10.240.0.7": (62780, "azv7"),
        }

    async def test_by_one_format_and_back(self, path: Path) -> None:
        async with opened(path) as (ledger, _, _):
            await ledger.commit(Assign(attachment(5)))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            bring_up_to_date(connection, UPGRADE, wanted=FORMAT + 1)
            assert connection.execute("SELECT mode FROM attachment").fetchall() == [("transparent",)]
            bring_up_to_date(connection, UPGRADE, wanted=FORMAT + 1)  # the next start
        assert set((await content_of(path)).attachments) == {attachment(5).key}

    async def test_that_fails_leaves_the_file_as_it_was(self, path: Path) -> None:
        async with opened(path) as (ledger, _, _):
            await ledger.commit(Assign(attachment(5)))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            with pytest.raises(sqlite3.OperationalError):
                bring_up_to_date(connection, {FORMAT: f"{UPGRADE[FORMAT]} nonsense;"}, wanted=FORMAT + 1)
            with pytest.raises(UnknownFormat, match="too old"):
                bring_up_to_date(connection, {FORMAT + 1: ""}, wanted=FORMAT + 2)
        assert set((await content_of(path)).attachments) == {attachment(5).key}


def clear(folder: Path) -> None:
    for leftover in folder.iterdir():
        leftover.unlink()


OPERATIONS = st.lists(
    st.one_of(
        st.builds(lambda n, a: Assign(attachment(n, address=a)), st.integers(1, 6), st.integers(1, 4)),
        st.builds(lambda n, s: Release(attachment(n).key, Moment(s, s, "b")), st.integers(1, 6), st.floats(0, 100)),
        st.builds(lambda n, a: Adopt(attachment(n, address=a)), st.integers(1, 6), st.integers(1, 4)),
        st.builds(lambda n: Withdraw((("", f"10.240.0.{n}"),)), st.integers(1, 4)),
        st.builds(lambda n: Withdraw((("", "10.240.0.2/28"),)), st.just(0)),
        st.builds(lambda n: Retire(((f"vnetpods-{n}", f"10.240.0.{n}"),)), st.integers(1, 4)),
        st.builds(lambda n: Reinstate((f"10.240.0.{n}",)), st.integers(1, 4)),
        st.builds(lambda n: Forget((Address(f"10.240.0.{n}"),)), st.integers(1, 4)),
    ),
    max_size=30,
)


def contradicts(model: Content, operation: Operation) -> bool:
    """An address has one holder, and isn't held and promised back."""
    match operation:
        case Assign(wanted) | Adopt(wanted):
            others = [a for a in model.attachments.values() if a.key != wanted.key]
            promised = [unit for unit in model.withdrawn if wanted.address in expand(unit)]
            return wanted.address in [a.address for a in others] or (isinstance(operation, Assign) and bool(promised))
        case Withdraw(entries):
            held = {a.address for a in model.attachments.values()}
            return any(held.intersection(expand(unit)) for _, unit in entries)
    return False


@given(operations=OPERATIONS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_file_and_mirror_never_differ(tmp_path: Path, operations: list[Operation]) -> None:
    path = tmp_path / "ledger.db"
    clear(tmp_path)
    model = Content()
    async with opened(path) as (ledger, _, _):
        for operation in operations:
            taken = contradicts(model, operation)
            try:
                await ledger.commit(operation)
            except AddressTaken:
                assert taken
            else:
                assert not taken
                enter(model, [operation])
    assert await content_of(path) == model
