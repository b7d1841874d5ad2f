"""The agent as a process: how it starts, how it ends, what it costs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.agent import truths
from tests.agent.machine import Machine, machine, until
from tests.agent.test_cases import add_many
from vnetpods_agent.cni.frames import Command, RequestFrame, encode_environment, encode_request
from vnetpods_api import Usage


async def test_it_serves_a_known_pool_at_once_and_without_its_source(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        await until((node.state / "pool.json").exists)
        await node.stop()
        (tmp_path / "pool.yaml").unlink()
        await node.start()
        assert await node.add("c1", node.sandbox()) == "10.240.0.5"


async def test_sigterm_finishes_what_is_in_flight_and_sends_the_waiting_on(tmp_path: Path) -> None:
    """Waiting calls don't use up the grace, which is an hour here."""
    async with machine(tmp_path, stopGrace=3600) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        await node.add("c1", node.sandbox())
        waiting = asyncio.create_task(node.add("c2", node.sandbox()))
        await until(lambda: node.report().usage == Usage(assigned=1, waiting=1))
        await node.stop()
        assert node.process
        assert node.process.returncode == 0
        node.pool(["10.240.0.5", "10.240.0.6"])
        await node.start()
        assert await waiting == "10.240.0.6"
        assert (tmp_path / "net.d" / "05-vnetpods.conflist").exists()


async def test_a_second_agent_waits_until_the_first_is_gone(tmp_path: Path) -> None:
    """A force-deleted pod that still runs, a second start by hand: each took the other's addresses for free."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5", "10.240.0.6", "10.240.0.7"])
        await node.start()
        first = node.process
        assert first
        await node.add("c1", node.sandbox())
        await until(lambda: node.report().usage == Usage(assigned=1, free=2))
        reporting = node.report().agent
        assert reporting
        await node.start(serving=False)
        await until(lambda: node.events("another agent runs with this folder; waiting for it to end"))
        node.pool(["10.240.0.5", "10.240.0.6", "10.240.0.7"], releasing=["10.240.0.6"])
        await until(lambda: node.report().released == ("10.240.0.6",))
        assert await node.add("c2", node.sandbox()) == "10.240.0.7"
        await until(lambda: node.report().usage == Usage(assigned=2))
        assert (said := node.report().agent)
        assert said.instance == reporting.instance
        assert len(node.events("serving")) == 1
        first.kill()
        await first.wait()
        await until(lambda: len(node.events("serving")) == 2)
        assert truths.read(node).agreed
        await until(lambda: (said := node.report().agent) and said.instance != reporting.instance)


async def test_a_second_agent_that_waits_can_be_ended(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        first = node.process
        assert first
        await node.start(serving=False)
        await until(lambda: node.events("another agent runs with this folder; waiting for it to end"))
        await node.stop()
        assert node.process
        assert node.process.returncode == 0
        assert await node.add("c1", node.sandbox()) == "10.240.0.5"
        first.kill()
        await first.wait()


async def test_a_second_agent_waits_also_when_the_state_folder_is_made_anew(tmp_path: Path) -> None:
    """The lock on the old one is of no use then: the newcomer served beside the first."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5", "10.240.0.6"])
        await node.start()
        first = node.process
        assert first
        held = await node.add("c1", node.sandbox())
        node.state.rename(tmp_path / "former")  # at once: the files in it go on being written
        node.state.mkdir(0o700)
        await node.start(serving=False)
        await until(lambda: node.events("another agent runs with this folder; waiting for it to end"))
        await until((node.state / "ledger.db").exists)
        await until(lambda: truths.ledger(node.state / "ledger.db") == {"c1/eth0": held})
        await until(lambda: node.events("the folder was replaced while in use"))
        assert await node.add("c2", node.sandbox()) != held
        assert (len(node.events("serving")), first.returncode) == (1, None)
        first.kill()
        await first.wait()
        await until(lambda: len(node.events("serving")) == 2)
        assert truths.read(node).agreed


async def test_an_agent_whose_folders_another_has_ends(tmp_path: Path) -> None:
    """Both were replaced, and the newcomer was quicker."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5", "10.240.0.6"])
        await node.start()
        first = node.process
        assert first
        first.send_signal(signal.SIGSTOP)
        for folder in (node.socket.parent, node.state):
            folder.rename(folder.with_name(f"{folder.name}-former"))
        await node.start()
        first.send_signal(signal.SIGCONT)
        assert await first.wait() == 70
        (said,) = node.events("this agent is not alone, the process ends")
        assert "another agent has the new one" in said["why"]
        assert await node.add("c1", node.sandbox()) == "10.240.0.5"


async def test_a_state_folder_that_is_wiped_is_written_anew(tmp_path: Path) -> None:
    """And what is in it then is what a killed agent's successor needs."""
    async with machine(tmp_path, cooldown=3600) as node:
        node.pool(["10.240.0.5", "10.240.0.6", "10.240.0.7"], releasing=["10.240.0.6"])
        await node.start()
        held = {"c1": await node.add("c1", node.sandbox()), "c2": await node.add("c2", node.sandbox("p-c2"))}
        await node.delete("c2", "/run/netns/p-c2")
        await until(lambda: node.report().released == ("10.240.0.6",))
        for file in node.state.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        await until(lambda: (node.state / "ledger.db").exists() and (node.state / "pool.json").exists())
        await until(lambda: truths.ledger(node.state / "ledger.db") == {"c1/eth0": held["c1"]})
        assert [event["reason"] for event in node.events("event reported")] == ["LedgerRebuilt"]
        await node.kill()
        await node.start()
        await until(lambda: node.report().usage == Usage(assigned=1, cooling=1))
        assert node.report().released == ("10.240.0.6",)


async def test_a_full_spool_is_replayed_beside_live_calls(tmp_path: Path) -> None:
    """Most are of sandboxes that never had an address: a node that was full while its agent was away."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5", "10.240.0.6"])
        await node.start()
        await node.add("gone", node.sandbox("p-gone"))
        await node.kill()
        spooled(node, [*(f"never-{number}" for number in range(FULL)), "gone"])
        await node.start()
        busy = memory(node)
        status, address = await asyncio.gather(node.call("STATUS", ""), node.add("c1", node.sandbox()))
        assert (status.exit_code, address) == (0, "10.240.0.6")
        assert list((node.state / "spool").iterdir()), "neither waits for all of it"
        await until(lambda: not list((node.state / "spool").iterdir()), within=60)
        assert truths.ledger(node.state / "ledger.db") == {"c1/eth0": address}
        assert memory(node) - busy < 16 << 20


FULL = 2000


def spooled(node: Machine, containers: list[str]) -> None:
    """What a shim has left there."""
    (node.state / "spool").mkdir(exist_ok=True)
    for number, container in enumerate(containers, start=1):
        variables = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}
        call = RequestFrame(Command.DEL, 15_000, encode_environment(variables), b"{}", replayed=True)
        name = f"{time.time_ns()}-{number}.req"
        (node.state / "spool" / name).write_bytes(encode_request(call))


def memory(node: Machine) -> int:
    """The most that the agent had, in bytes."""
    assert node.process
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{node.process.pid}/status").read_text())
    return int(peak) * 1024


async def test_health_and_metrics(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        await node.start()
        assert "no address for pods is known" in fetch(node, "/readyz")
        node.pool(["10.240.0.5", "10.240.0.6"])
        await until(lambda: fetch(node, "/readyz") == "ok\n")
        assert fetch(node, "/healthz") == "ok\n"
        await node.add("c1", node.sandbox())
        metrics = fetch(node, "/metrics").splitlines()
        assert 'vnetpods_agent_addresses{state="assigned"} 1.0' in metrics
        assert 'vnetpods_agent_addresses{state="free"} 1.0' in metrics
        assert 'vnetpods_agent_call_seconds_count{outcome="ok",verb="ADD"} 1.0' in metrics


def fetch(node: Machine, path: str) -> str:
    port = node.events("metrics")[-1]["port"]
    command = [
        "nsenter",
        f"--net=/run/netns/{node.name}",
        sys.executable,
        "-c",
        FETCH,
        f"http://127.0.0.1:{port}{path}",
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


FETCH = """
import sys, urllib.request, urllib.error
try:
    answer = urllib.request.urlopen(sys.argv[1])
except urllib.error.HTTPError as error:
    answer = error
sys.stdout.write(answer.read().decode())
"""


async def test_new_pods_get_what_the_nic_takes_by_now(tmp_path: Path) -> None:
    """Those that are there keep what they have: their other end can't be changed any more."""
    async with machine(tmp_path) as node:
        node.pool([f"10.240.1.{n}" for n in range(256)])
        await node.start()
        first = node.sandbox()
        await node.add("first", first)
        shrink(node)
        for number in range(255):  # until the agent has heard of it
            await node.add(f"c{number}", later := node.sandbox())
            if mtu(later) == 1400:
                break
            await asyncio.sleep(0.05)
        assert (mtu(first), mtu(later)) == (1500, 1400)


def shrink(node: Machine) -> None:
    subprocess.run(["ip", "-n", node.name, "link", "set", "eth0", "mtu", "1400"], check=True)


def mtu(netns: str) -> int:
    shown = subprocess.check_output(["ip", "-n", Path(netns).name, "-j", "link", "show", "eth0"])
    return int(json.loads(shown)[0]["mtu"])


async def test_memory_with_250_pods(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(250)]
    async with machine(tmp_path) as node:
        node.pool([f"10.240.1.{n}" for n in range(256)])
        await node.start()
        for batch in range(0, 250, 25):
            await add_many(node, names[batch : batch + 25])
        assert resident(node) < 60 * 1024


def resident(node: Machine) -> int:
    """Kilobytes."""
    assert node.process
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


HEAVY = {"azure", "cryptography", "jsonschema", "kopf", "kubernetes", "requests", "yaml"}
"""None of them is needed before the first call is served."""


def test_little_is_imported_before_the_first_call() -> None:
    """What a start takes is mostly imports. rich is there for development only."""
    program = """
import sys
sys.modules["rich"] = None
before = set(sys.modules)
import vnetpods_agent.app
print(*(set(sys.modules) - before))
"""
    imported = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    foreign = [name for name in imported if not name.startswith("vnetpods_")]
    assert HEAVY & {name.partition(".")[0] for name in foreign} == set()
    assert len(foreign) < 390  # 377 with Python 3.11; ours are small


async def test_uninstall_takes_the_conflist_first_and_leaves_pods_running(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        netns = node.sandbox()
        address = await node.add("c1", netns)
        conflist, shim = tmp_path / "net.d" / "05-vnetpods.conflist", tmp_path / "bin" / "vnetpods"
        await until(conflist.exists)
        await node.stop()
        said = uninstall(node)
        assert (conflist.exists(), shim.exists()) == (False, False)
        assert "1 pods still run" in said
        assert (node.routes(), node.addresses_of(netns)) == ({address}, [address])
        node.end_sandbox(netns)
        await until(lambda: not node.host_ends())
        assert uninstall(node) == ""
        assert "vnetpods" not in nft(node)


def uninstall(node: Machine) -> str:
    config = f"--config={node.folder / 'agent.yaml'}"
    command = ["nsenter", f"--net=/run/netns/{node.name}", sys.executable, "-m", "vnetpods_agent", "uninstall", config]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "NODE_NAME": "w"}
    ).stdout


def nft(node: Machine) -> str:
    command = ["nsenter", f"--net=/run/netns/{node.name}", "nft", "list", "tables"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def test_what_was_put_in_place_stays_there(tmp_path: Path) -> None:
    """Somebody empties /run, the runtime's folders and the spool's while the agent runs."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        files = [tmp_path / "net.d" / "05-vnetpods.conflist", tmp_path / "bin" / "vnetpods", node.socket]
        for file in (*files, node.state / "spool"):
            await until(file.exists)
            (shutil.rmtree if file.is_dir() else Path.unlink)(file)
        for file in (*files, node.state / "spool"):
            await until(file.exists)
        assert await node.add("c1", node.sandbox()) == "10.240.0.5"


async def test_a_socket_that_can_not_be_bound_again_ends_in_a_restart(tmp_path: Path) -> None:
    """As with a hostPath that was removed: what the container has mounted is gone for good."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        await until(lambda: fetch(node, "/readyz") == "ok\n")
        shutil.rmtree(node.socket.parent)
        node.socket.parent.touch()
        await until(lambda: f"{node.socket} can't be bound" in fetch(node, "/readyz"))
        await until(lambda: f"{node.socket} can't be bound" in fetch(node, "/healthz"), within=30)


async def test_what_can_not_be_installed_is_said(tmp_path: Path) -> None:
    async with machine(tmp_path, chained=["tuning"]) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        await until(lambda: "plugin 'tuning' can't be chained" in fetch(node, "/readyz"))
        assert fetch(node, "/healthz") == "ok\n"


async def test_health_is_there_as_soon_as_its_port_is(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        with taken_port(node) as port:
            settings = json.loads((tmp_path / "agent.yaml").read_text())
            (tmp_path / "agent.yaml").write_text(json.dumps(settings | {"http": {"port": port}}))
            node.pool(["10.240.0.5"])
            await node.start()
            await until(lambda: node.events("no metrics and no health yet"))
            assert await node.add("c1", node.sandbox()) == "10.240.0.5"
        await until(lambda: node.events("metrics"))
        assert fetch(node, "/healthz") == "ok\n"
        assert len(node.events("no metrics and no health yet")) == 1


LISTEN = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def taken_port(node: Machine) -> Iterator[int]:
    """A port of the machine's loopback address on which somebody else listens."""
    command = ["nsenter", f"--net=/run/netns/{node.name}", sys.executable, "-c", LISTEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdin
        yield int(other.stdout.readline())
        other.stdin.close()
