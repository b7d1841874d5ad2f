"""How fast packets travel: VM to VM, pod to pod across nodes, pod to Service, and the same with the reference plugin
ptp.

All on one VNet fabric and in one run: every path has its turn in every round, so that what else goes on here meets
all of them, and the median of the rounds' ratios counts. Four VMs: two connect their pods with our data plane and
host state, two with ptp + host-local without masquerading (a routed veth and nothing else, not even connection
tracking). Each NIC owns 250 addresses; the second half of the rounds runs with all of them given to pods. Pods are
compared with the VMs they are on: connections are tracked on ours as on every Kubernetes node, and not on ptp's.

Throughput is measured twice: as the fabric is, a wire without limit, where the machine's CPU is what ends it; and with
the bandwidth that Azure gives a VM of the size Standard_D2s_v5, which is what ends it there.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.agent.dataplane.world import World, inside, run_in
from tests.azure import client
from tests.azure.client import Azure
from tests.bench.figures import compiled, console, machine, save, table
from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, Pod
from vnetpods_agent.dataplane import HostState, Nic
from vnetpods_agent.dataplane.host.reconciler import HostReconciler
from vnetpods_agent.dataplane.kernel_facts import uplink_limits
from vnetpods_agent.dataplane.pod.reaper import Reaper
from vnetpods_agent.dataplane.pod.transparent import Transparent

REFERENCE = Path("/usr/lib/cni")
ADDRESSES = 250
ROUNDS = 7
SECONDS = 1.5
PORT = 7001
IPERF_PORT = 7002
SERVICE = "10.96.0.10"
DIRECT = ("10.240.0.0/12",)
BANDWIDTH = "12500mbit"
VM, VM_PTP = "VM ↔ VM", "VM ↔ VM, ptp"
COMPARED = {VM: VM, "pod ↔ pod": VM, "pod → Service": VM, VM_PTP: VM_PTP, "pod ↔ pod, ptp": VM_PTP}
"""Every path, with the one it is compared with."""


class Spot(NamedTuple):
    """Where a program runs, and how it is reached there."""

    namespace: str
    address: str


@dataclass
class Figures:
    """One path at one number of pods: a value per round."""

    gbit_per_s: list[float] = field(default_factory=list)
    gbit_per_s_of_12_5: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    connections_per_s: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in vars(self).items()}


class Vm:
    """A VM of the fabric with the addresses of its NIC; `place` connects a namespace as a pod."""

    def __init__(self, azure: Azure, name: str) -> None:
        azure.create_nic(f"{name}-nic", "net/pods", secondaries=ADDRESSES + 1)
        azure.create_vm(name, nics=[f"{name}-nic"])
        self.name = name
        self.mac = azure.nic(f"{name}-nic")["properties"]["macAddress"].replace("-", ":").lower()
        self.primary, *self.addresses = azure.addresses(f"{name}-nic").values()

    def place(self, namespace: str, number: int) -> Spot:
        raise NotImplementedError


class OurVm(Vm):
    """Pods by our data plane."""

    def __init__(self, azure: Azure, name: str, world: World, stack: contextlib.ExitStack) -> None:
        super().__init__(azure, name)
        self._world = world
        nic = Nic(self.mac, Address(self.primary), ("10.240.0.0/16",), tuple(self.addresses))
        with inside(name):
            host = HostReconciler(lambda kind, message: console.print(f"{name}: {kind}: {message}", style="dim"))
            self._plane = Transparent(Reaper())
            host.start()
            limits = uplink_limits(self.mac)
        assert limits
        self._limits = limits
        stack.callback(host.close)
        stack.callback(self._plane.close)
        host.declare(HostState((nic,), DIRECT))
        assert host.wait(10), "the host state was not put in place"

    def place(self, namespace: str, number: int) -> Spot:
        address = self.addresses[number]
        key = AttachmentKey("vnetpods", namespace, "eth0")
        netns = f"/run/netns/{namespace}"
        attachment = Attachment(
            key,
            Address(address),
            netns,
            self.mac,
            self._limits.mtu,
            "boot",
            0.0,
            Pod("bench", namespace),
            self._limits.gso_max_size,
        )
        self._plane.attach(attachment, self._world.open_doors(namespace))
        return Spot(namespace, address)


class ReferenceVm(Vm):
    """Pods by ptp + host-local."""

    def __init__(self, azure: Azure, name: str, folder: Path) -> None:
        super().__init__(azure, name)
        bounds = {"rangeStart": self.addresses[0], "rangeEnd": self.addresses[-2], "gateway": self.addresses[-1]}
        ranges = [[{"subnet": "10.240.0.0/16", **bounds}]]
        ipam = {"type": "host-local", "dataDir": str(folder / name), "routes": [{"dst": "0.0.0.0/0"}], "ranges": ranges}
        self._conf = json.dumps({"cniVersion": "1.0.0", "name": name, "type": "ptp", "ipMasq": False, "ipam": ipam})

    def place(self, namespace: str, number: int) -> Spot:
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": namespace,
            "CNI_NETNS": f"/run/netns/{namespace}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(REFERENCE),
        }
        command = ["nsenter", f"--net=/run/netns/{self.name}", str(REFERENCE / "ptp")]
        done = subprocess.run(command, input=self._conf, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return Spot(namespace, json.loads(done.stdout)["ips"][0]["address"].split("/")[0])


def service(vm: Vm, backend: Spot) -> Spot:
    """What kube-proxy in nftables mode makes of a ClusterIP with one endpoint, as far as a packet is concerned."""
    lines = (
        "add table ip services",
        "add map ip services endpoints { type ipv4_addr . inet_service : ipv4_addr . inet_service ; }",
        "add chain ip services inbound { type nat hook prerouting priority -100 ; }",
        "add rule ip services inbound meta l4proto tcp dnat to ip daddr . tcp dport map @endpoints",
        *(
            f"add element ip services endpoints {{ {SERVICE} . {p} : {backend.address} . {p} }}"
            for p in (PORT, IPERF_PORT)
        ),
    )
    for line in lines:
        run_in(vm.name, f"nft {line}")
    return Spot(backend.namespace, SERVICE)


@contextlib.contextmanager
def serving(spots: Sequence[Spot]) -> Iterator[None]:
    """A pingpong and an iperf3 server at every spot."""
    pingpong = compiled(Path(__file__).with_name("pingpong.c"))
    with contextlib.ExitStack() as stack:
        for namespace in sorted({spot.namespace for spot in spots}):
            for command in (
                [str(pingpong), "serve", str(PORT)],
                ["iperf3", "--forceflush", "-s", "-p", str(IPERF_PORT)],
            ):
                words = ["nsenter", f"--net=/run/netns/{namespace}", *command]
                process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                stack.callback(process.wait)
                stack.callback(process.kill)
                assert process.stdout
                process.stdout.readline()
        yield


def measure(client_spot: Spot, server: Spot, figures: Figures) -> None:
    pingpong = str(compiled(Path(__file__).with_name("pingpong.c")))
    p50, p99, _ = run_in(client_spot.namespace, f"{pingpong} ask {server.address} {PORT} {SECONDS}").split()
    figures.p50_us.append(float(p50))
    figures.p99_us.append(float(p99))
    rate = run_in(client_spot.namespace, f"{pingpong} connect {server.address} {PORT} {SECONDS}")
    figures.connections_per_s.append(float(rate))
    figures.gbit_per_s.append(throughput(client_spot, server))


def throughput(client_spot: Spot, server: Spot) -> float:
    """Of one TCP stream, in Gbit/s."""
    iperf = run_in(client_spot.namespace, f"iperf3 -J -C cubic -t {SECONDS} -O 0.5 -c {server.address} -p {IPERF_PORT}")
    return float(json.loads(iperf)["end"]["sum_received"]["bits_per_second"]) / 1e9


def main() -> int:
    console.print(machine())
    world = World()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vnetpods-bench-")))
        azure = client.start(folder / "azure", duration=0)
        stack.callback(azure.stop)
        stack.callback(world.close)
        azure.create_vnet("net", "10.240.0.0/12")
        azure.create_subnet("net", "pods", "10.240.0.0/16")
        ours = [OurVm(azure, name, world, stack) for name in ("v1", "v2")]
        theirs = [ReferenceVm(azure, name, folder) for name in ("r1", "r2")]
        measured = _run(world, ours, theirs)
    return _show(measured)


def _run(world: World, ours: Sequence[OurVm], theirs: Sequence[ReferenceVm]) -> dict[tuple[str, int], Figures]:
    pods = {vm.name: vm.place(world.namespace(f"{vm.name}-0"), 0) for vm in (*ours, *theirs)}
    spots = {vm.name: Spot(vm.name, vm.primary) for vm in (*ours, *theirs)}
    pairs = [
        (spots["v1"], spots["v2"]),
        (pods["v1"], pods["v2"]),
        (pods["v1"], service(ours[0], pods["v2"])),
        (spots["r1"], spots["r2"]),
        (pods["r1"], pods["r2"]),
    ]
    paths = dict(zip(COMPARED, pairs, strict=True))
    measured: dict[tuple[str, int], Figures] = {}
    with serving([server for _, server in paths.values()]):
        for count in (1, ADDRESSES):
            if count > 1:
                _fill(world, [*ours, *theirs])
            for number in range(ROUNDS):
                for name, (asking, answering) in paths.items():
                    measure(asking, answering, measured.setdefault((name, count), Figures()))
                with limited([*ours, *theirs]):
                    for name, (asking, answering) in paths.items():
                        measured[name, count].gbit_per_s_of_12_5.append(throughput(asking, answering))
                console.print(f"{count} pods per node: round {number + 1} of {ROUNDS}", style="dim")
    return measured


@contextlib.contextmanager
def limited(vms: Sequence[Vm]) -> Iterator[None]:
    """NICs send no more than BANDWIDTH."""
    for vm in vms:
        run_in(vm.name, f"tc qdisc add dev eth0 root tbf rate {BANDWIDTH} burst 1mb limit 8mb")
    yield
    for vm in vms:
        run_in(vm.name, "tc qdisc del dev eth0 root")


def _fill(world: World, vms: Sequence[Vm]) -> None:
    for vm in vms:
        for number in range(1, ADDRESSES):
            vm.place(world.namespace(f"{vm.name}-{number}"), number)


def _show(measured: dict[tuple[str, int], Figures]) -> int:
    counts = sorted({count for _, count in measured})
    rows = []
    content: dict[str, dict[str, dict[str, float]]] = {}
    for count in counts:
        for name, other in COMPARED.items():
            figures, base = measured[name, count], measured[other, count]
            medians = figures.medians()
            free = _ratio(figures.gbit_per_s, base.gbit_per_s)
            limit = _ratio(figures.gbit_per_s_of_12_5, base.gbit_per_s_of_12_5)
            trip = _ratio(figures.p50_us, base.p50_us)
            content.setdefault(str(count), {})[name] = {
                **{key: round(value, 3) for key, value in medians.items()},
                "throughput_of_vm": round(limit, 3),
                "throughput_of_vm_unlimited": round(free, 3),
                "p50_of_vm": round(trip, 3),
            }
            rows.append(
                [
                    f"{name}, {count} pods",
                    f"{medians['gbit_per_s_of_12_5']:.2f}",
                    f"{100 * limit:.0f} %",
                    f"{medians['gbit_per_s']:.2f}",
                    f"{100 * free:.0f} %",
                    f"{medians['p50_us']:.1f}",
                    f"{trip:.2f} x",
                    f"{medians['p99_us']:.1f}",
                    f"{medians['connections_per_s']:.0f}",
                ]
            )
    columns = [
        "path",
        "of 12.5 Gbit/s",
        "of VM",
        "Gbit/s, no limit",
        "of VM",
        "p50 µs",
        "of VM",
        "p99 µs",
        "connections/s",
    ]
    table(f"TCP on one fabric, medians of {ROUNDS} rounds", columns, rows)
    save("bench-net.json", {"machine": machine(), "pods": content})
    return 0


def _ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median of the rounds' ratios: both of a round were measured within seconds."""
    return statistics.median(value / other for value, other in zip(values, base, strict=True))
