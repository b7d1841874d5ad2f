"""Shim and agent of neighbouring protocol versions: each is replaced without the other, so every pair must talk.

The other shim is the real one, compiled for another protocol; the other agent is the real one with wire.VERSION set.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.machine import machine, until
from tests.agent.plugin import plugin
from tests.agent.shim import PATIENT, QUICK, Outcome, Runtime, named_netns, program
from vnetpods_agent.cni import frames
from vnetpods_agent.cni.server import Server
from vnetpods_agent.cni.spool import Spool

CONFIG = b'{"cniVersion": "1.1.0", "name": "vnetpods", "type": "vnetpods"}'
NEXT = f"PROTOCOL={frames.VERSION + 1}"
PAIRS = [
    pytest.param(frames.VERSION - 1, frames.VERSION, id="former-shim"),
    pytest.param(frames.VERSION, frames.VERSION - 1, id="former-agent"),
    pytest.param(frames.VERSION, frames.VERSION + 1, id="shim-before-agent"),
    pytest.param(frames.VERSION + 1, frames.VERSION, id="agent-before-shim"),
    pytest.param(frames.VERSION + 1, frames.VERSION + 1, id="both-later"),
]


def shim(protocol: int) -> Path:
    return program(*QUICK, *([] if protocol == frames.VERSION else [f"PROTOCOL={protocol}"]))


@pytest.mark.parametrize(("of_shim", "of_agent"), PAIRS)
async def test_every_verb_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_shim: int, of_agent: int
) -> None:
    runtime = Runtime(tmp_path, shim=shim(of_shim))
    monkeypatch.setattr(frames, "VERSION", of_agent)
    async with plugin(tmp_path, "10.0.0.5") as cni:
        server = Server(runtime.socket, cni.verbs.handle)
        await server.start()
        try:
            with named_netns() as netns:

                async def call(verb: str, conf: bytes = CONFIG) -> Outcome:
                    return await runtime.call(
                        verb, conf, CNI_CONTAINERID="c1", CNI_IFNAME="eth0", CNI_NETNS=str(netns), CNI_PATH="/opt"
                    )

                added = await call("ADD")
                assert added.json["ips"][0]["address"] == "10.0.0.5/32"
                with_result = CONFIG[:-1] + b', "prevResult": ' + added.stdout + b"}"
                for verb in ("CHECK", "GC", "STATUS", "VERSION"):
                    outcome = await call(verb, with_result)
                    assert outcome.exit_code == 0, (verb, outcome)
                assert (await call("DEL")).exit_code == 0
                assert (await call("CHECK", with_result)).code == 100  # an error comes through as well
        finally:
            await server.stop(grace=0)
        assert cni.desk.attachments.by_key == {}
    assert not runtime.spool.exists()


@pytest.mark.parametrize("of_shim", [frames.VERSION - 1, frames.VERSION + 1])
async def test_what_another_shim_has_spooled_is_done(tmp_path: Path, of_shim: int) -> None:
    runtime = Runtime(tmp_path, shim=shim(of_shim))
    async with plugin(tmp_path, "10.0.0.5") as cni:
        await cni.ok(frames.Command.ADD)
        attachments = cni.desk.attachments.by_key
        # the desk has a boot of its own
        unknown = {"VNETPODS_BOOT_ID": "/dev/null"}
        assert (await runtime.call("DEL", CONFIG, CNI_CONTAINERID="c1", CNI_IFNAME="eth0", **unknown)).exit_code == 0
        assert len(list(runtime.spool.iterdir())) == 1
        assert await Spool(runtime.spool, cni.verbs.handle).replay() == 1
        assert attachments == {}


async def test_a_pod_comes_and_goes_through_a_later_shim(tmp_path: Path) -> None:
    """The whole agent: as after a downgrade that has left the shim behind."""
    async with machine(tmp_path) as node:
        node.shim = program(*PATIENT, NEXT)
        node.pool(["10.240.0.5"])
        await node.start()
        netns = node.sandbox()
        assert await node.add("c1", netns) == "10.240.0.5"
        await node.delete("c1", netns)
        assert list((node.state / "spool").glob("*.req")) == []
        await until(lambda: node.routes() == set())
