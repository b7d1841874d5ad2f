from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from tests.agent.desk import HANDLES, Desk, desk, wanted
from vnetpods_agent.attachment import Address, AttachmentKey
from vnetpods_agent.dataplane import HostInterface
from vnetpods_agent.ipam.pool import ANY
from vnetpods_agent.ipam.requests import AttachRequest
from vnetpods_agent.ipam.sweeper import SUPERSEDED, UNCLAIMED, Sweep, Sweeper

ADDRESSES = [f"10.0.0.{n}" for n in range(5, 12)]


def sweeper(made: Desk) -> Sweeper:
    return Sweeper(made.attachments, made.kernel, made.plane, made.uptime)


def stray(name: str, address: str) -> HostInterface:
    return HostInterface(f"azv{name}", 99, wanted(name).key, Address(address))


async def test_a_sandbox_that_is_gone_gives_back_its_address(tmp_path: Path) -> None:
    async with desk(tmp_path, *ADDRESSES) as made:
        await made.add("a")
        await made.add("b", pod="b")
        made.plane.there.pop(wanted("a").key)  # with its namespace; the path may be in use again
        found = await sweeper(made).sweep()
        assert found == Sweep(gone=1)
        assert "10.0.0.5 of pod default/web-0: sandbox is gone without a DEL" in found.said
        assert list(await made.agree()) == ["b"]


async def test_what_a_list_lacks_is_looked_for_before_it_is_torn_down(tmp_path: Path) -> None:
    async with desk(tmp_path, *ADDRESSES) as made:
        await made.add("a")
        made.plane.overlooked.add(wanted("a").key)
        assert await sweeper(made).sweep() == Sweep()
        assert list(await made.agree()) == ["a"]


async def test_one_that_the_kernel_refuses_does_not_keep_the_others(tmp_path: Path) -> None:
    async with desk(tmp_path, *ADDRESSES) as made:
        for name in ("a", "b"):
            await made.add(name, pod=name)
        made.plane.there.clear()
        made.plane.refuses_once = "detach"
        assert (await sweeper(made).sweep()).gone == 1
        assert (await sweeper(made).sweep()).gone == 1
        assert await made.agree() == {}


async def test_what_could_not_be_settled_is_counted(tmp_path: Path) -> None:
    async with desk(tmp_path, *ADDRESSES) as made:
        await made.add("a")
        made.plane.there[wanted("z").key] = stray("z", "10.0.0.5")
        made.plane.refuses.add("remove")
        assert await sweeper(made).sweep() == Sweep(unsettled=1)
        made.plane.refuses.clear()
        assert await sweeper(made).sweep() == Sweep(removed=1)


async def test_a_second_sweep_finds_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path, *ADDRESSES) as made:
        await made.add("a")
        made.plane.there.clear()
        made.plane.there[wanted("z").key] = stray("z", "10.0.0.9")
        assert await sweeper(made).sweep() == Sweep(gone=1, adopted=1)
        assert await sweeper(made).sweep() == Sweep()


async def test_the_older_of_two_sandboxes_of_one_pod_goes_after_a_while(tmp_path: Path) -> None:
    async with desk(tmp_path, *ADDRESSES) as made:
        for name in ("old", "new"):
            await made.add(name, pod="same")
            made.now[0] += 1
        await made.add("other", pod="other")
        assert await sweeper(made).sweep() == Sweep()
        made.now[0] += SUPERSEDED
        assert await sweeper(made).sweep() == Sweep(superseded=1)
        assert set(await made.agree()) == {"new", "other"}


async def test_two_interfaces_of_one_pod_both_stay(tmp_path: Path) -> None:
    async with desk(tmp_path, *ADDRESSES) as made:
        first = await made.add("a")
        second = AttachRequest(AttachmentKey("vnetpods", "a", "net1"), first.netns, first.pod)
        await made.attachments.attach(second, HANDLES, asyncio.get_running_loop().time() + 1)
        made.now[0] += 2 * SUPERSEDED
        assert await sweeper(made).sweep() == Sweep()


async def test_a_stray_with_the_address_of_another_pod_is_removed(tmp_path: Path) -> None:
    async with desk(tmp_path, *ADDRESSES) as made:
        address = (await made.add("a")).address
        made.plane.there[wanted("z").key] = stray("z", address)
        assert await sweeper(made).sweep() == Sweep(removed=1)
        assert list(await made.agree()) == ["a"]


async def test_what_carries_no_owner_is_somebody_elses(tmp_path: Path) -> None:
    """Azure's own CNI calls its interfaces azv… too."""
    async with desk(tmp_path, *ADDRESSES) as made:
        theirs = HostInterface("azv12345678901", 3, None, None)
        made.plane.there[wanted("theirs").key] = theirs
        assert await sweeper(made).sweep() == Sweep()
        assert made.plane.gone == []


async def test_calls_under_way_are_left_alone(tmp_path: Path) -> None:
    async with desk(tmp_path, *ADDRESSES) as made:
        go_on = made.plane.hold("attach")
        add = asyncio.get_running_loop().create_task(made.add("a"))
        await asyncio.to_thread(made.plane.reached["attach"].wait, 5)
        sweep = asyncio.get_running_loop().create_task(sweeper(made).sweep())
        await asyncio.sleep(0.02)
        go_on.set()
        assert await sweep == Sweep()
        await add
        assert list(await made.agree()) == ["a"]


async def test_a_clock_that_was_set_back_between_two_sandboxes_makes_the_live_one_no_older(tmp_path: Path) -> None:
    """kubernetes#127948: by the wall clock the newer one was swept."""
    async with desk(tmp_path, *ADDRESSES) as made:
        await made.add("former")
        made.steps(-3600)
        await made.add("live")
        await made.passes(SUPERSEDED - 1)
        assert await sweeper(made).sweep() == Sweep()
        await made.passes(2)
        assert await sweeper(made).sweep() == Sweep(superseded=1)
        assert list(await made.agree()) == ["live"]


async def test_what_no_sandbox_comes_for_is_given_back(tmp_path: Path) -> None:
    """An address that is only reserved, and an interface that was never taken, or came back."""
    async with desk(tmp_path, *ADDRESSES) as made:
        sweeps = sweeper(made)
        await made.add("a")
        await made.add("b", pod="b")
        await made.attachments.reserve(AttachmentKey("vnetpods", "r", ""), ANY, asyncio.get_running_loop().time() + 1)
        waits = wanted("b").key
        made.plane.there[waits] = replace(made.plane.there[waits], untaken=True)
        assert await sweeps.sweep() == Sweep()
        made.now[0] += UNCLAIMED - 1
        assert await sweeps.sweep() == Sweep()
        made.now[0] += 1
        found = await sweeps.sweep()
        assert found == Sweep(unclaimed=2)
        assert "10.0.0.6 of pod default/b: no sandbox came for it" in found.said
        assert await made.agree() == {"a": "10.0.0.5"}


async def test_what_a_sandbox_has_come_for_meanwhile_stays(tmp_path: Path) -> None:
    async with desk(tmp_path, *ADDRESSES) as made:
        sweeps = sweeper(made)
        await made.add("a")
        taken = made.plane.there[wanted("a").key]
        made.plane.there[wanted("a").key] = replace(taken, untaken=True)
        await sweeps.sweep()
        made.plane.there[wanted("a").key] = taken
        made.now[0] += UNCLAIMED
        assert await sweeps.sweep() == Sweep()
        made.plane.there[wanted("a").key] = replace(taken, untaken=True)
        made.now[0] += UNCLAIMED
        assert await sweeps.sweep() == Sweep(), "by what was seen, not by when it was made"
