"""Orders of events: what overtakes what, who is cancelled when, and what is left in memory, ledger and kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.agent.desk import COOLDOWN, HANDLES, MAC, Desk, desk, loaded, wanted
from tests.agent.planes import DictPlane
from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, Moment, Pod
from vnetpods_agent.dataplane import DataPlaneError, HostInterface
from vnetpods_agent.ipam.ledger.schema import Content
from vnetpods_agent.ipam.ledger.store import LedgerUnavailable
from vnetpods_agent.ipam.pool import ANY, Wish
from vnetpods_agent.ipam.requests import Abandoned, AddressRefused, AttachRequest, NoAddress
from vnetpods_agent.ipam.sweeper import Sweep, Sweeper


def started(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


async def reached(plane: DictPlane, step: str) -> None:
    assert await asyncio.to_thread(plane.reached[step].wait, 5)


class TestOvertaking:
    """C01, ACN#4829: DEL overtakes ADD of the same sandbox."""

    async def test_while_the_add_is_in_the_kernel(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            go_on = made.plane.hold("attach")
            add = started(made.add("x"))
            await reached(made.plane, "attach")
            delete = started(made.delete("x"))
            await asyncio.sleep(0.05)
            assert not delete.done()  # it waits for its turn
            go_on.set()
            with pytest.raises(Abandoned):
                await add
            await delete
            other = started(made.add("y"))
            await asyncio.sleep(0.05)
            assert not other.done()  # the address cools down: x had it
            await made.passes(COOLDOWN)
            assert (await other).address == "10.0.0.5"
            assert await made.agree() == {"y": "10.0.0.5"}

    async def test_while_the_add_waits_for_the_disk(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            gate = asyncio.Event()
            blocker = made.ledger.submit(lambda: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result())
            loop = asyncio.get_running_loop()
            await asyncio.sleep(0.02)
            add = started(made.add("x"))
            await asyncio.sleep(0.02)
            delete = started(made.delete("x"))
            await asyncio.sleep(0.02)
            gate.set()
            await blocker
            with pytest.raises(Abandoned):
                await add
            assert await delete is None
            assert (await made.add("y")).address == "10.0.0.5"  # no pod ever had it: no cool-down
            assert await made.agree() == {"y": "10.0.0.5"}

    async def test_while_the_add_waits_for_an_address(self, tmp_path: Path) -> None:
        async with desk(tmp_path) as made:
            add = started(made.add("x"))
            await asyncio.sleep(0)
            assert await made.delete("x") is None
            with pytest.raises(Abandoned, match="deleted"):
                await add
            assert made.pool.waiting() == 0

    async def test_a_spooled_del_does_not_concern_an_add_that_began_later(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            spooled_at = made.attachments.now()
            await made.passes(1)
            go_on = made.plane.hold("attach")
            add = started(made.add("x"))
            await reached(made.plane, "attach")
            delete = started(made.delete("x", before=spooled_at))
            go_on.set()
            assert (await add).address == "10.0.0.5"
            assert await delete is None
            assert await made.agree() == {"x": "10.0.0.5"}

    async def test_add_after_del_after_add_in_one_breath(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5", "10.0.0.6") as made:
            add, delete, again = (started(work) for work in (made.add("x"), made.delete("x"), made.add("x")))
            with pytest.raises(Abandoned):
                await add
            await delete
            address = (await again).address
            assert await made.agree() == {"x": address}


class TestRepeating:
    async def test_an_add(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5", "10.0.0.6") as made:
            both = await asyncio.gather(made.add("x"), made.add("x"))
            assert both[0] == both[1]
            assert await made.agree() == {"x": "10.0.0.5"}

    async def test_an_add_in_another_namespace_moves_the_attachment(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5", "10.0.0.6") as made:
            await made.add("x")
            moved = AttachRequest(wanted("x").key, "/run/netns/other", None)
            attachment = await made.attachments.attach(moved, HANDLES, 0.0)
            assert (attachment.address, attachment.netns) == ("10.0.0.5", "/run/netns/other")
            assert attachment.pod == Pod("default", "web-0", "uid-web-0")

    async def test_a_del(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            await made.add("x")
            results = await asyncio.gather(made.delete("x"), made.delete("x"), made.delete("never"))
            assert [bool(result) for result in results] == [True, False, False]
            assert await made.agree() == {}


class TestWaiting:
    async def test_says_why_when_time_runs_out(self, tmp_path: Path) -> None:
        async with desk(tmp_path) as made:
            with pytest.raises(NoAddress, match="SubnetFull: no address left in pods"):
                await made.add("x", within=0.02)
            assert made.pool.waiting() == 0

    async def test_in_the_order_of_arrival(self, tmp_path: Path) -> None:
        async with desk(tmp_path) as made:
            adds = [started(made.add(name, pod=name)) for name in "abc"]
            await asyncio.sleep(0)
            made.lists("10.0.0.5", "10.0.0.6")
            first = await adds[0]
            second = await adds[1]
            assert (first.address, second.address) == ("10.0.0.5", "10.0.0.6")
            assert not adds[2].done()
            adds[2].cancel()

    async def test_a_caller_that_goes_away_gives_back_its_place(self, tmp_path: Path) -> None:
        async with desk(tmp_path) as made:
            adds = [started(made.add(name, pod=name)) for name in "ab"]
            await asyncio.sleep(0)
            adds[0].cancel()
            await asyncio.gather(adds[0], return_exceptions=True)
            made.lists("10.0.0.5")
            assert (await adds[1]).address == "10.0.0.5"
            assert await made.agree() == {"b": "10.0.0.5"}

    async def test_a_caller_that_goes_away_as_its_address_comes_gives_it_back(self, tmp_path: Path) -> None:
        async with desk(tmp_path) as made:
            add, other = started(made.add("a")), started(made.add("b", pod="b"))
            await asyncio.sleep(0)
            made.lists("10.0.0.5")
            add.cancel()  # its future is fulfilled already
            await asyncio.gather(add, return_exceptions=True)
            assert (await other).address == "10.0.0.5"
            assert await made.agree() == {"b": "10.0.0.5"}

    async def test_for_a_cool_down_to_end(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            await made.add("a")
            await made.delete("a")
            add = started(made.add("b", pod="b"))
            await made.passes(COOLDOWN - 1)
            assert not add.done()
            await made.passes(1)
            assert (await add).address == "10.0.0.5"

    @pytest.mark.parametrize("step", [3600.0, -3600.0], ids=["forward", "back"])
    async def test_a_clock_that_is_set_changes_no_cool_down(self, tmp_path: Path, step: float) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            await made.add("a")
            await made.delete("a")
            add = started(made.add("b", pod="b"))
            made.steps(step)
            await made.passes(COOLDOWN - 1)
            assert not add.done()
            await made.passes(1)
            assert (await add).address == "10.0.0.5"

    @pytest.mark.parametrize(
        ("since", "rests"),
        [
            pytest.param(lambda now: now, COOLDOWN, id="now"),
            pytest.param(lambda now: replace(now, wall=0.0), COOLDOWN, id="now-and-the-clock-was-set"),
            pytest.param(lambda now: replace(now, boot_id="former"), 0.0, id="in-an-earlier-boot"),
            pytest.param(lambda now: Moment(now.wall - 10), COOLDOWN - 10, id="by-a-former-version"),
            pytest.param(lambda now: Moment(now.wall + 99), COOLDOWN, id="by-one-before-the-clock-was-set-back"),
        ],
    )
    async def test_for_a_cool_down_that_began_before_a_restart(
        self, tmp_path: Path, since: Callable[[Moment], Moment], rests: float
    ) -> None:
        """After a boot it begins anew with the boot, which is long ago here."""
        async with desk(tmp_path, "10.0.0.5") as made:
            made.attachments.remember(Content(rests={Address("10.0.0.5"): since(made.attachments.now())}))
            add = started(made.add("b"))
            if rests:
                await made.passes(rests - 1)
                assert not add.done()
                await made.passes(1)
            assert (await add).address == "10.0.0.5"

    async def test_for_a_former_pods_interface_to_go(self, tmp_path: Path) -> None:
        """Nobody tells: it is looked at until it is gone."""
        async with desk(tmp_path, "10.0.0.5") as made:
            made.plane.on_their_way.add(Address("10.0.0.5"))
            add = started(made.add("b"))
            await asyncio.sleep(0.1)
            assert not add.done()
            made.plane.on_their_way.clear()
            assert (await add).address == "10.0.0.5"

    async def test_is_cut_short_when_the_agent_ends(self, tmp_path: Path) -> None:
        async with desk(tmp_path) as made:
            add = started(made.add("a"))
            await asyncio.sleep(0)
            made.attachments.close()
            late = started(made.add("b"))
            await asyncio.gather(add, late, return_exceptions=True)
            assert (add.cancelled(), late.cancelled()) == (True, True)


def reservation(name: str) -> AttachmentKey:
    return AttachmentKey("vnetpods", name, "")


async def reserved(made: Desk, name: str = "r", wish: Wish = ANY) -> Attachment:
    return await made.attachments.reserve(reservation(name), wish, asyncio.get_running_loop().time() + 1)


async def claimed(made: Desk, name: str, of: Attachment) -> Attachment:
    request = replace(wanted(name, name), wish=Wish(address=of.address), claims=of.key)
    return await made.attachments.attach(request, None, asyncio.get_running_loop().time() + 1)


class TestReserving:
    async def test_a_reservation_is_durable_and_nothing_in_the_kernel(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5", "10.0.0.6") as made:
            assert (await reserved(made)).address == "10.0.0.5"
            assert (await made.add("a")).address == "10.0.0.6"
            assert list(made.plane.there) == [wanted("a").key]
            await asyncio.to_thread(made.ledger.close)
            content, _ = await loaded(made.path)
            assert content.attachments[reservation("r")].address == "10.0.0.5"

    async def test_given_back_it_needs_nothing_of_the_kernel(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            made.plane.refuses.add("detach")
            await reserved(made)
            assert await made.attachments.detach(reservation("r"))
            assert await made.attachments.detach(reservation("r")) is None
            assert await made.agree() == {}

    async def test_claimed_it_is_the_attachments_address(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5", "10.0.0.6") as made:
            kept = await reserved(made)
            assert (await claimed(made, "a", kept)).address == kept.address
            assert (await claimed(made, "a", kept)).address == kept.address, "repeated"
            assert await made.attachments.detach(kept.key) is None
            assert await made.agree() == {"a": "10.0.0.5"}

    async def test_claimed_after_it_was_given_back(self, tmp_path: Path) -> None:
        """That very address, if it is free."""
        async with desk(tmp_path, "10.0.0.5", "10.0.0.6") as made:
            kept = await reserved(made)
            await made.attachments.detach(kept.key)
            assert (await claimed(made, "a", kept)).address == kept.address
            with pytest.raises(AddressRefused, match="is in use, by a/eth0"):
                await claimed(made, "b", kept)
            assert await made.agree() == {"a": "10.0.0.5"}

    async def test_a_disk_that_is_full_leaves_it_reserved(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            kept = await reserved(made)
            made.ledger.full = True
            with pytest.raises(LedgerUnavailable):
                await claimed(made, "a", kept)
            assert made.attachments.holder(kept.address) == kept.key
            made.ledger.full = False
            await claimed(made, "a", kept)
            assert await made.agree() == {"a": "10.0.0.5"}

    @pytest.mark.parametrize("full", [False, True])
    async def test_a_claim_whose_caller_goes_away(self, tmp_path: Path, full: bool) -> None:
        """Is either done, and undone, or wasn't begun; nothing is between."""
        async with desk(tmp_path, "10.0.0.5") as made:
            kept = await reserved(made)
            made.ledger.full = full
            claim = started(claimed(made, "a", kept))
            await asyncio.sleep(0)
            claim.cancel()
            await asyncio.gather(claim, return_exceptions=True)
            made.ledger.full = False
            assert made.attachments.holder(kept.address) == (kept.key if full else None)
            await made.attachments.detach(kept.key)
            assert await made.agree() == {}

    async def test_a_kernel_that_refuses_frees_the_address(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            kept = await reserved(made)
            made.plane.refuses.add("attach")
            with pytest.raises(DataPlaneError):
                await claimed(made, "a", kept)
            assert await made.agree() == {}

    async def test_made_sure_of_again_is_only_what_is_there(self, tmp_path: Path) -> None:
        """Also when it is being deleted at the moment."""
        async with desk(tmp_path, "10.0.0.5") as made:
            assert await made.attachments.renew(wanted("a").key, None) is None
            kept = await claimed(made, "a", await reserved(made))
            assert await made.attachments.renew(kept.key, None) == kept
            go_on = made.plane.hold("detach")
            deleting = started(made.delete("a"))
            await reached(made.plane, "detach")
            renewing = started(made.attachments.renew(kept.key, None))
            go_on.set()
            assert await deleting
            assert await renewing is None
            assert await made.agree() == {}


class TestFailing:
    async def test_a_kernel_that_refuses_costs_no_address_for_good(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            made.plane.refuses = {"half an attach"}
            with pytest.raises(DataPlaneError):
                await made.add("x")
            assert made.plane.there == {}
            add = started(made.add("y"))
            await made.passes(COOLDOWN - 1)
            assert not add.done()  # x may have spoken
            await made.passes(1)
            made.plane.refuses.clear()
            assert (await add).address == "10.0.0.5"
            assert await made.agree() == {"y": "10.0.0.5"}

    @pytest.mark.parametrize("why", ["taken", "refused"])
    async def test_what_was_not_made_costs_not_even_a_cool_down(self, tmp_path: Path, why: str) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            made.plane.taken = {"/run/netns/x"} if why == "taken" else set()
            made.plane.refuses = {"attach"} if why == "refused" else set()
            for _ in range(3):
                with pytest.raises(DataPlaneError):
                    await made.add("x")
            made.plane.refuses.clear()
            assert (await made.add("y")).address == "10.0.0.5"
            assert await made.agree() == {"y": "10.0.0.5"}

    async def test_a_kernel_that_does_not_let_go_keeps_the_address_held(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            await made.add("x")
            made.plane.refuses = {"detach"}
            with pytest.raises(DataPlaneError):
                await made.delete("x")
            assert await made.agree() == {"x": "10.0.0.5"}

    async def test_a_caller_that_goes_away_during_an_add_leaves_nothing_behind(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            go_on = made.plane.hold("attach")
            add = started(made.add("x"))
            await reached(made.plane, "attach")
            add.cancel()
            await asyncio.sleep(0.05)
            assert not add.done()  # the kernel's thread still uses its descriptors
            go_on.set()
            await asyncio.gather(add, return_exceptions=True)
            assert add.cancelled()
            assert await made.agree() == {}

    async def test_a_caller_that_goes_away_during_a_del_does_not_stop_it(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            await made.add("x")
            go_on = made.plane.hold("detach")
            delete = started(made.delete("x"))
            await reached(made.plane, "detach")
            delete.cancel()
            await asyncio.sleep(0.02)
            go_on.set()
            await asyncio.gather(delete, return_exceptions=True)
            assert await made.agree() == {}

    async def test_a_full_disk_refuses_adds_and_not_dels(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5", "10.0.0.6") as made:
            await made.add("x")
            made.ledger.full = True
            with pytest.raises(LedgerUnavailable, match="full"):
                await made.add("y", pod="y")
            await made.delete("x")
            assert made.attachments.by_key == {}
            made.ledger.full = False
            await made.passes(COOLDOWN)
            assert {(await made.add(name, pod=name)).address for name in "yz"} == {"10.0.0.5", "10.0.0.6"}
            assert set(await made.agree()) == {"y", "z"}


class TestAdopting:
    def interface(self, name: str, address: str) -> HostInterface:
        return HostInterface(f"azv{name}", 7, wanted(name).key, Address(address))

    async def test_a_pod_that_the_ledger_forgot_keeps_its_address(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5", "10.0.0.6") as made:
            forgotten = self.interface("x", "10.0.0.5")
            made.plane.there[wanted("x").key] = forgotten
            assert await made.attachments.adopt(forgotten) == "adopted"
            assert (await made.add("y", pod="y")).address == "10.0.0.6"
            assert (await made.add("x")).address == "10.0.0.5"
            assert await made.agree() == {"x": "10.0.0.5", "y": "10.0.0.6"}

    async def test_what_its_interface_says_of_it_is_kept(self, tmp_path: Path) -> None:
        """Its name on the host follows from the pod's, which nobody tells."""
        async with desk(tmp_path, "10.0.0.5") as made:
            forgotten = replace(self.interface("x", "10.0.0.5"), created=1234.5, uid="uid-x")
            made.plane.there[wanted("x").key] = forgotten
            await made.attachments.adopt(forgotten)
            adopted = made.attachments.by_key[wanted("x").key]
            assert (adopted.host_ifname, adopted.created) == (forgotten.name, 1234.5)
            assert adopted.pod == Pod("", "", "uid-x")
            await asyncio.to_thread(made.ledger.close)
            content, _ = await loaded(made.path)
            assert content.attachments == {adopted.key: adopted}

    async def test_the_older_of_two_sandboxes_goes_also_when_both_were_forgotten(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5", "10.0.0.6") as made:
            # whatever the clock was at then
            for name, address, index in (("new", "10.0.0.5", 9), ("old", "10.0.0.6", 8)):
                interface = replace(self.interface(name, address), index=index, uid="uid")
                made.plane.there[wanted(name).key] = replace(interface, created=made.now[0] - 10 * index)
            sweeper = Sweeper(made.attachments, made.kernel, made.plane, made.uptime)
            assert await sweeper.sweep() == Sweep(adopted=2)
            assert await sweeper.sweep() == Sweep(superseded=1)
            assert await made.agree() == {"new": "10.0.0.5"}

    async def test_the_address_of_another_pod_is_not_adopted(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            await made.add("y")
            stray = self.interface("x", "10.0.0.5")
            made.plane.there[wanted("x").key] = stray
            assert await made.attachments.adopt(stray) == "removed"
            assert made.plane.gone == [stray]
            assert await made.agree() == {"y": "10.0.0.5"}

    async def test_what_is_gone_meanwhile_is_left_alone(self, tmp_path: Path) -> None:
        async with desk(tmp_path, "10.0.0.5") as made:
            assert await made.attachments.adopt(self.interface("x", "10.0.0.5")) == ""
            assert await made.agree() == {}

    async def test_its_nic_is_learned_later(self, tmp_path: Path) -> None:
        async with desk(tmp_path) as made:
            forgotten = self.interface("x", "10.0.0.5")
            made.plane.there[wanted("x").key] = forgotten
            await made.attachments.adopt(forgotten)
            made.lists("10.0.0.5")
            await made.attachments.name_nics()
            assert made.attachments.by_key[wanted("x").key].nic_mac == MAC


async def test_many_at_once_agree(tmp_path: Path) -> None:
    """Adds, deletes, repeats and callers that go away, all at once."""
    names = [f"c{n}" for n in range(40)]
    async with desk(tmp_path, *(f"10.0.1.{n}" for n in range(100))) as made:
        await asyncio.gather(*(made.add(name, pod=name) for name in names))
        work = [started(made.delete(name)) for name in names[:20]]
        work += [started(made.add(name, pod=name)) for name in names[10:]]
        work += [started(made.add(f"d{n}", pod=f"d{n}")) for n in range(15)]
        await asyncio.sleep(0)
        for task in work[::7]:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        assert set(names[20:]) - set(await made.agree()) == set()
