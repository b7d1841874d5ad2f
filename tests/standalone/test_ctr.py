"""containerd's own tool with our conflist, on a VM of the fabric: `ctr run --cni`, without Kubernetes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent import shim, truths
from tests.azure import packets
from tests.kube import binaries, image
from tests.kube.machine import MachineError
from tests.kube.node import RUNC, Node
from tests.standalone.vm import ADDRESSES, INTERNET, NAME, PEER, PEER_ADDRESS, PORT, PRIMARY, SERVE, Vm, until

pytestmark = pytest.mark.timeout(240)
IMAGE = "vnetpods.test/web:1"
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "loopback")


class Containerd(Vm):
    """`containerd` in place of dockerd."""

    def up(self) -> None:
        self._programs = binaries.programs(*PROGRAMS)
        settings = {"source": {"imds": {"interval": 1}}, "cooldown": 1, "sweepInterval": 1, "http": {"port": 0}}
        paths = {"shim": str(shim.program())}
        (self.folder / "agent.yaml").write_text(json.dumps(settings | {"paths": paths}))
        self.machine.boot()
        self.machine.run("cp", str(self._programs["loopback"]), "/opt/cni/bin/")
        Node(self.machine, PRIMARY).start_containerd(self._programs)
        archive = self.folder / "image.tar"
        archive.write_bytes(image.archive(IMAGE, image.busybox(), ["sh", "-c", SERVE]))
        self.ctr("images", "import", "--local", "--snapshotter=native", str(archive))
        self.start_agent()
        until("the conflist", (self.machine.folder / "disk" / "etc-cni-net.d" / "05-vnetpods.conflist").exists)

    def start_agent(self) -> None:
        command = [str(Path(sys.executable).with_name("vnetpods-agent")), "run"]
        self.machine.start("agent", [*command, f"--config={self.folder / 'agent.yaml'}"])

    def ctr(self, *arguments: str) -> str:
        """MachineError carries what the user would read."""
        return self.machine.run(str(self._programs["ctr"]), *arguments, timeout=90).stdout

    def run_container(self, name: str) -> str:
        """Its address, as the kernel says it."""
        before = self.addresses()
        options = ("--cni", "--detach", "--snapshotter=native", f"--runc-binary={RUNC}")
        self.ctr("run", *options, IMAGE, name)
        (address,) = self.addresses() - before
        return address

    def end(self, name: str) -> None:
        """ctr sends no DEL for a detached container."""
        self.ctr("tasks", "rm", "--force", name)
        self.ctr("containers", "rm", name)

    def fetched_by(self, name: str, url: str) -> str:
        fetch = ("timeout", "10", "wget", "-qO-", url)
        return self.ctr("tasks", "exec", "--exec-id", f"e{len(url)}", name, *fetch).strip()

    def addresses(self) -> set[str]:
        """Of containers: ledger and kernel must say the same."""
        path = self.machine.folder / "disk" / "var-lib-vnetpods" / "ledger.db"
        until("ledger and kernel agree", lambda: truths.ledger(path) == truths.kernel(NAME))
        return set(truths.ledger(path).values())


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    made = Containerd(tmp_path_factory.mktemp("vm"))
    try:
        made.up()
        yield made
    finally:
        made.down()


def test_containers_have_addresses_of_the_vnet_and_give_them_back(vm: Containerd) -> None:
    one, two = vm.run_container("one"), vm.run_container("two")
    assert {one, two} <= set(ADDRESSES)
    assert until("it serves", lambda: vm.called(one)) == PEER_ADDRESS
    with packets.serving(PEER, PEER_ADDRESS, 80):
        assert vm.fetched_by("one", f"http://{PEER_ADDRESS}/").split()[-1] == one
    assert vm.fetched_by("one", f"http://{two}:{PORT}/cgi-bin/caller") == one
    assert vm.fetched_by("one", f"http://{INTERNET}/") == PRIMARY
    vm.end("one")
    vm.end("two")
    until("nothing is left of them", lambda: not vm.addresses())


def test_a_container_waits_for_no_agent_for_ever_and_starts_when_there_is_one(vm: Containerd) -> None:
    vm.machine.daemons["agent"].crash()
    vm.machine.daemons["agent"].process.wait()
    with pytest.raises(MachineError, match="the vnetpods agent on this node is not answering"):
        vm.run_container("late")
    vm.end("late")  # its task was created
    vm.start_agent()
    until("the agent serves", lambda: "listening" in vm.machine.daemons["agent"].tail())
    assert vm.run_container("late") in ADDRESSES
    vm.end("late")
