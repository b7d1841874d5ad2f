"""A disk that was captured with the agent's state on it boots as another machine, whose own address is listed for pods
there.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.agent.machine import PRIMARY, machine, until
from vnetpods_agent.dataplane.host.actions import ADDRESS_TAKEN, NIC_MISSING


async def test_a_machine_from_an_image_keeps_its_own_address(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5", "10.240.0.6"])
        await node.start()
        await node.add("c1", node.sandbox())
        await until((node.state / "pool.json").exists)
        await node.kill()
        node.reboot()
        for command in (
            "link set eth0 address 00:0d:3a:ff:ff:ff",
            f"addr del {PRIMARY}/16 dev eth0",
            "addr add 10.240.0.6/16 dev eth0",
            "route add default via 10.240.0.1 dev eth0",
        ):
            subprocess.run(f"ip -n {node.name} {command}".split(), check=True)  # noqa: ASYNC221
        before = node.shown()
        (tmp_path / "pool.yaml").unlink()  # the source isn't there: the agent has its memory alone
        await node.start()
        await until(lambda: NIC_MISSING in {event["reason"] for event in node.events("event reported")})
        assert ADDRESS_TAKEN not in {event["reason"] for event in node.events("event reported")}
        assert node.shown() == before
        status = await node.call("STATUS", "")
        assert (status.code, "the pool is another machine's" in str(status.json)) == (50, True)
