"""The ledger and its disk: full, read-only, and gone in the middle of a write."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.agent.mounts import small_disk
from tests.agent.powercut import Disk, Files, traced
from tests.agent.test_ledger import attachment, clear, content_of, opened
from vnetpods_agent.attachment import Address, Moment
from vnetpods_agent.ipam.ledger.schema import Adopt, Assign, Content, Operation, Release, Retire, Withdraw, enter
from vnetpods_agent.ipam.ledger.store import UNAVAILABLE, Ledger, LedgerUnavailable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


class TestDisk:
    async def test_full(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", kilobytes=256) as disk:
            path = disk / "ledger.db"
            async with opened(path) as (ledger, _, _):
                await ledger.commit(Assign(attachment(5)))
                ballast = fill(disk)
                outcomes = await asyncio.gather(
                    *(ledger.commit(Assign(attachment(number))) for number in range(6, 200)), return_exceptions=True
                )
                assert LedgerUnavailable in map(type, outcomes)
                assert "full" in ledger.trouble
                with pytest.raises(LedgerUnavailable):
                    await ledger.commit(Release(attachment(5).key, Moment(9.0)))
                ballast.unlink()
                # nobody asks, and yet what could not be written then is made up for
                await until(lambda: not ledger.trouble)
                await ledger.commit(Assign(attachment(7, address=5)))
            found = await content_of(path)
            assert attachment(5).key not in found.attachments
            assert found.attachments[attachment(7).key].address == "10.240.0.5"

    async def test_read_only_from_the_start(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", kilobytes=1024) as disk:
            path = disk / "ledger.db"
            async with opened(path) as (ledger, _, _):
                await ledger.commit(Assign(attachment(5)))
            remount(disk, "ro")
            async with opened(path) as (ledger, _, trouble):
                assert "read-only" in trouble
                with pytest.raises(LedgerUnavailable):
                    await ledger.commit(Assign(attachment(6)))
                remount(disk, "rw")

    @pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
    async def test_what_a_file_holds_that_can_be_read_later_is_put_together_with_what_has_happened(
        self, tmp_path: Path, damaged: bool
    ) -> None:
        with small_disk(tmp_path / "disk", kilobytes=1024) as disk:
            path = disk / "ledger.db"
            async with opened(path) as (ledger, _, _):
                await ledger.commit(*(Assign(attachment(number)) for number in (5, 6, 7, 8)))
                await ledger.commit(Release(attachment(8).key, Moment(9.0)), Withdraw((("", "10.240.0.9"),)))
            if damaged:
                path.write_text("{}")
            remount(disk, "ro")
            async with opened(path) as (ledger, nothing, _):
                assert (nothing, ledger.unread) == (Content(), True)
                for fact in (
                    Adopt(replace(attachment(5), pod=None, netns="")),
                    Adopt(replace(attachment(6), pod=None, netns="")),
                    Release(attachment(6).key, Moment(11.0)),
                    Adopt(attachment(17, address=7)),
                ):
                    with pytest.raises(LedgerUnavailable):
                        await ledger.commit(fact)
                assert (await ledger.load())[0] == Content()  # still read-only
                remount(disk, "rw")
                await asyncio.sleep(0.7)  # nothing is written before it is asked for
                content, trouble = await ledger.load()
                assert ("set aside" in trouble, ledger.unread) == (damaged, False)
                assert content.attachments[attachment(17).key].address == "10.240.0.7"
                if not damaged:
                    assert set(content.attachments) == {attachment(5).key, attachment(17).key}
                    assert content.attachments[attachment(5).key] == attachment(5)
                    assert content.rests == {Address("10.240.0.8"): Moment(9.0), Address("10.240.0.6"): Moment(11.0)}
                    assert content.withdrawn == {"10.240.0.9": ""}
                await until(lambda: not ledger.trouble)
            assert await content_of(path) == content

    async def test_each_trouble_is_told_once(self, tmp_path: Path) -> None:
        told: list[str] = []
        with small_disk(tmp_path / "disk", kilobytes=256) as disk:
            ledger = Ledger(disk / "ledger.db", notify=lambda reason, _: told.append(reason))
            ledger.start()
            await ledger.load()
            await ledger.commit(Assign(attachment(5)))
            for _ in range(2):
                ballast = fill(disk)
                await asyncio.gather(
                    *(ledger.commit(Assign(attachment(number))) for number in range(6, 200)), return_exceptions=True
                )
                await asyncio.sleep(1.2)
                ballast.unlink()
                await until(lambda: not ledger.trouble)
            assert told == [UNAVAILABLE] * 2
            await asyncio.to_thread(ledger.close)


async def until(what: Callable[[], bool]) -> None:
    for _ in range(200):
        if what():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not within 10 s")


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, bytes(1024))
    os.close(descriptor)
    return ballast


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.agent.test_ledger import attachment
from vnetpods_agent.attachment import Moment
from vnetpods_agent.ipam.ledger.store import Ledger
from vnetpods_agent.ipam.ledger.schema import Assign, Release

async def main():
    ledger = Ledger(Path(sys.argv[1])); ledger.start(); await ledger.load()
    for number in range(1, 250):
        await ledger.commit(Assign(attachment(number)))
        print("assigned", number, flush=True)
        if number % 3 == 0:
            await ledger.commit(Release(attachment(number).key, Moment(1.0)))
            print("released", number, flush=True)

asyncio.run(main())
"""


def writing(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)


def promised(lines: list[str]) -> tuple[set[int], set[int]]:
    """What the writer was told is durable."""
    done: dict[str, set[int]] = {"assigned": set(), "released": set()}
    for line in lines:
        if line.endswith("\n"):
            word, number = line.split()
            done[word].add(int(number))
    return done["assigned"], done["released"]


async def test_kill_at_any_moment_loses_nothing_that_was_confirmed(path: Path) -> None:
    for after in (1, 7, 40, 133):
        clear(path.parent)
        writer = writing(path)
        assert writer.stdout
        lines = [writer.stdout.readline() for _ in range(after)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        writer.stdout.close()
        assigned, released = promised(lines)
        found = (await content_of(path)).attachments
        there = {int(key.container_id[1:]) for key in found}
        assert assigned - released <= there | {max(assigned)}  # the last may have been released, and not told of it
        assert not released & there


def steps() -> list[Operation]:
    """Pods that come and go, one address after the other used again."""
    found: list[Operation] = []
    for number in range(1, 60):
        if number % 6:
            found += [
                Assign(attachment(number, address=number // 2)),
                Release(attachment(number).key, Moment(float(number))),
            ]
        else:
            found += [
                Assign(attachment(number, address=100 + number)),
                Retire(((f"vnetpods-{number}", f"10.240.0.{number}"),)),
            ]
    return found


PAUSES = (45, 90)
"""Before these steps the writer rests until the log has been moved into the file."""
POWERED = """
import asyncio, os, sys
from pathlib import Path
from tests.agent.test_ledger_disk import PAUSES, steps
from vnetpods_agent.ipam.ledger.store import Ledger

async def main():
    ledger = Ledger(Path(sys.argv[1])); ledger.start(); await ledger.load()
    for number, step in enumerate(steps()):
        if number in PAUSES:
            await asyncio.sleep(1.2)
        await ledger.commit(step)
        os.write(1, b"done")
    await asyncio.to_thread(ledger.close)

asyncio.run(main())
"""


def states() -> list[Content]:
    """What the ledger holds after so many steps."""
    content = Content()
    found = [content.copy()]
    for step in steps():
        enter(content, [step])
        found.append(content.copy())
    return found


async def test_power_cut_at_any_moment_loses_nothing_that_was_confirmed(path: Path, tmp_path: Path) -> None:
    """At every confirmation what is there for certain has it; before every sync whatever arrived of the rest does no
    harm.
    """
    state = tmp_path / "state"
    state.mkdir()
    calls = await asyncio.to_thread(traced, [sys.executable, "-c", POWERED, str(state / "ledger.db")], tmp_path)
    disk, chance, known, confirmed = Disk(state), random.Random(4), states(), 0
    for number, call in enumerate(calls):
        if call.syncs:
            after = await powered_again(tmp_path / f"more-{number}", disk.more(chance), confirmed)
            assert after in known[confirmed : confirmed + 2]
        disk.sees(call)
        if call.name == "write" and call.texts == (b"done",):
            confirmed += 1
            assert await powered_again(tmp_path / f"least-{number}", disk.least(), confirmed) == known[confirmed]
    assert confirmed == len(steps())
    assert sum(call.name == "ftruncate" for call in calls) >= len(PAUSES)


async def powered_again(folder: Path, files: Files, confirmed: int) -> Content:
    """What the next agent finds, and that it can go on from there."""
    write(folder, files)
    async with opened(folder / "ledger.db") as (ledger, content, trouble):
        assert trouble == "" or not confirmed
        await ledger.commit(Assign(attachment(250)))
    return content


def write(folder: Path, files: Files) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
