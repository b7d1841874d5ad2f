"""ADD and DEL as a container runtime sees them: whole processes, beside the reference plugins ptp + host-local.

Both plugins work on machines of the same make (a namespace with an uplink) and take turns, round by round, so that what
else goes on here meets both. vnetpods is the real shim and a real agent process with a pool from a file; of the
reference plugins nothing but what Debian ships, without masquerading.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.agent.machine import Machine, machine
from tests.agent.shim import program
from tests.bench.figures import compiled, console, percentile, save, table, versions
from tests.bench.figures import machine as this_machine
from tests.bench.live import Cost, cost
from tests.bench.parts import parts
from tests.kube import apiserver

REFERENCE = Path("/usr/lib/cni")
PODS = 250
ADDRESSES = 4 * PODS  # those of former rounds are cooling
ROUNDS = 3
ONE_AT_A_TIME = 100
LOADS = (1, 10, 50, PODS)


@dataclass
class Calls:
    """What one kind of call took, over all rounds: milliseconds each, and the wall time of each round's batch."""

    ms: list[float] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)
    errors: int = 0

    @property
    def per_second(self) -> float:
        return len(self.ms) / sum(self.walls)


@dataclass
class Candidate:
    """A plugin with its surroundings, and what was measured of it: by verb and number in flight."""

    name: str
    plugin: Path
    conf: dict[str, object]
    environment: dict[str, str]
    node: str
    folder: Path
    measured: dict[tuple[str, int], Calls] = field(default_factory=dict)

    def call(self, verb: str, in_flight: int, pods: Sequence[str]) -> None:
        """The verb for every pod (a namespace's name), so many at once."""
        (self.folder / "conf").write_text(json.dumps(self.conf))
        (self.folder / "jobs").write_text("".join(f"{pod} /run/netns/{pod}\n" for pod in pods))
        command = ["nsenter", f"--net=/run/netns/{self.node}", str(compiled(Path(__file__).with_name("caller.c")))]
        command += [str(self.plugin), str(in_flight), str(self.folder / "conf"), str(self.folder / "jobs")]
        variables = {"CNI_COMMAND": verb, "CNI_IFNAME": "eth0", "CNI_PATH": str(REFERENCE), **self.environment}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        wall, *lines = done.stdout.splitlines()
        calls = self.measured.setdefault((verb, in_flight), Calls())
        calls.walls.append(int(wall) / 1e9)
        for line in lines:
            nanoseconds, code = line.split()
            calls.ms.append(int(nanoseconds) / 1e6)
            calls.errors += code != "0"
        if done.stderr:
            console.print(done.stderr[:2000], style="red")


def vnetpods(node: Machine) -> Candidate:
    environment = {"VNETPODS_SOCKET": str(node.socket), "VNETPODS_SPOOL": str(node.state / "spool")}
    conf: dict[str, object] = {"cniVersion": "1.1.0", "name": "vnetpods", "type": "vnetpods"}
    return Candidate("vnetpods", node.shim, conf, environment, node.name, node.folder)


def ptp(node: Machine) -> Candidate:
    ipam = {"type": "host-local", "subnet": "10.240.0.0/16", "dataDir": str(node.folder / "host-local")}
    conf: dict[str, object] = {"cniVersion": "1.0.0", "name": "ptp", "type": "ptp", "ipMasq": False, "ipam": ipam}
    return Candidate("ptp", REFERENCE / "ptp", conf, {}, node.name, node.folder)


async def main() -> int:
    if not (REFERENCE / "ptp").exists():
        console.print(f"{REFERENCE}/ptp is missing: install containernetworking-plugins", style="red")
        return 1
    with tempfile.TemporaryDirectory(prefix="vnetpods-bench-") as folder:
        ours, theirs = Path(folder, "vnetpods"), Path(folder, "ptp")
        for each in (ours, theirs):
            await asyncio.to_thread(each.mkdir)
        settings = {"cooldown": 1.0, "reportInterval": 10.0}
        async with machine(ours, **settings) as first, machine(theirs) as second:
            first.shim = program()
            first.pool([f"10.240.{number // 250 + 4}.{number % 250 + 1}" for number in range(ADDRESSES)])
            second.log.touch()
            await first.start()
            await asyncio.sleep(1.0)
            candidates = [vnetpods(first), ptp(second)]
            one_add = await _measure(first, candidates)
        at_rest = Path(folder, "rest")
        await asyncio.to_thread(at_rest.mkdir)
        with apiserver.running(at_rest) as server:
            agent = await cost(at_rest, server, PODS)
    _show(candidates, agent, one_add)
    return 1 if any(calls.errors for candidate in candidates for calls in candidate.measured.values()) else 0


async def _measure(node: Machine, candidates: Sequence[Candidate]) -> dict[str, float]:
    """All loads, into the candidates; returns where one ADD spends its time."""
    console.print(f"{this_machine()}; {versions('containernetworking-plugins')}")
    pods = {
        candidate.name: [Path(node.sandbox(f"{candidate.name}-{number}")).name for number in range(PODS)]
        for candidate in candidates
    }
    for _ in range(ROUNDS):
        for in_flight in LOADS:
            for candidate in candidates:
                some = pods[candidate.name][: ONE_AT_A_TIME if in_flight == 1 else PODS]
                await asyncio.to_thread(candidate.call, "ADD", in_flight, some)
                await asyncio.to_thread(candidate.call, "DEL", in_flight, some)
                await asyncio.sleep(1.5)  # ours finishes its DELs now, and addresses cool down
    return await parts(candidates[0], pods[candidates[0].name][:ONE_AT_A_TIME])


def _show(candidates: Sequence[Candidate], agent: Cost, one_add: dict[str, float]) -> None:
    rows = []
    for verb in ("ADD", "DEL"):
        for in_flight in LOADS:
            row = [f"{verb}, {in_flight} in flight"]
            for candidate in candidates:
                calls = candidate.measured[verb, in_flight]
                row += [f"{percentile(calls.ms, 50):.2f}", f"{percentile(calls.ms, 99):.2f}"]
                row += [f"{calls.per_second:.0f}", str(calls.errors)]
            rows.append(row)
    columns = ["whole process, ms"]
    for candidate in candidates:
        columns += [f"{candidate.name} p50", "p99", "per s", "errors"]
    table("ADD and DEL", columns, rows)
    table("Where one ADD spends its time", ["part", "ms"], [[name, f"{ms:.2f}"] for name, ms in one_add.items()])
    at_once = max(candidates[0].measured["ADD", PODS].walls)
    console.print(
        f"{PODS} pods at once: {at_once:.2f} s; agent with a live watch: {agent.empty_mb:.1f} MB resident,"
        f" {agent.full_mb:.1f} MB with {PODS} pods, then {agent.cpu_percent:.2f} % of a CPU at rest"
    )
    summary = {candidate.name: _summary(candidate) for candidate in candidates}
    save("bench.json", {**summary, "vnetpods": {**summary["vnetpods"], "agent_rss_mb": round(agent.full_mb, 1)}})
    details = {
        "machine": this_machine(),
        "reference": versions("containernetworking-plugins"),
        "at_once_s": at_once,
        "agent_rss_mb": {"0": agent.empty_mb, str(PODS): agent.full_mb},
        "agent_cpu_at_rest_percent": agent.cpu_percent,
        "one_add_ms": one_add,
        "calls": {
            candidate.name: {
                f"{verb} {in_flight}": {
                    "p50_ms": percentile(calls.ms, 50),
                    "p99_ms": percentile(calls.ms, 99),
                    "per_s": calls.per_second,
                    "errors": calls.errors,
                }
                for (verb, in_flight), calls in candidate.measured.items()
            }
            for candidate in candidates
        },
    }
    save("bench-details.json", details)


def _summary(candidate: Candidate) -> dict[str, float]:
    add, delete = candidate.measured["ADD", 1], candidate.measured["DEL", 1]
    return {
        "add_p50_ms": round(percentile(add.ms, 50), 3),
        "add_p99_ms": round(percentile(add.ms, 99), 3),
        "del_p50_ms": round(percentile(delete.ms, 50), 3),
        "adds_per_s_50": round(candidate.measured["ADD", 50].per_second, 1),
    }
