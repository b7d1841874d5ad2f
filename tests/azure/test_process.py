"""The process by itself: started by hand, killed, started again, found by another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import pace
from tests.azure import client
from tests.azure.arm.admin import RefusedError
from tests.azure.client import ROOT
from tests.azure.fabric import namespaces


def test_help_says_how_to_point_a_client_at_it() -> None:
    command = [sys.executable, "-m", "tests.azure", "--help"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "http://20.0.0.1:8080" in shown
    assert "ip netns exec w1" in shown


def test_survives_its_starter_and_is_found_again(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.azure import client; client.start(Path(sys.argv[1])).close()"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True)
    azure = client.connect(tmp_path)
    try:
        azure.create_vnet("net", "10.0.0.0/16")
        azure.create_subnet("net", "a", "10.0.0.0/24")
        azure.create_vm("w1", "net/a")
        assert namespaces.exists("w1")
        with pytest.raises(RefusedError, match="InvalidResourceReference"):
            azure.create_vm("w2", "net/missing")
        with pytest.raises(RefusedError, match="no verb"):
            azure._call("nonsense")
        assert azure.bugs() == []
        assert "go inside" in (tmp_path / "azure.log").read_text()
    finally:
        azure.stop()
    assert not namespaces.exists("w1")
    assert not namespaces.exists("fabric")
    assert not (tmp_path / "azure.json").exists()
    with pytest.raises(FileNotFoundError):
        client.connect(tmp_path)


def test_starts_again_after_a_crash(tmp_path: Path) -> None:
    azure = client.start(tmp_path)
    azure.create_vnet("net", "10.0.0.0/16")
    azure.create_subnet("net", "a", "10.0.0.0/24")
    azure.create_vm("w1", "net/a")
    os.kill(azure.pid, signal.SIGKILL)
    azure.close()
    while not client._zombie(azure.pid):
        time.sleep(0.01)
    assert namespaces.exists("w1"), "a crash leaves namespaces"
    again = client.start(tmp_path)
    try:
        again.create_vnet("net", "10.0.0.0/16")
        again.create_subnet("net", "a", "10.0.0.0/24")
        again.create_vm("w1", "net/a")
        assert again.addresses("w1-nic") == {"ipconfig1": "10.0.0.4"}
    finally:
        again.stop()


def test_ends_with_its_starter_if_wanted(tmp_path: Path) -> None:
    program = "import sys, time; from pathlib import Path; from tests.azure import client\n"
    program += "print(client.start(Path(sys.argv[1]), outlive=False).pid, flush=True); time.sleep(60)"
    starter = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdout.close()
    deadline = time.monotonic() + pace.stretched(10)
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the emulator outlives its starter"
        time.sleep(0.02)
    assert not namespaces.exists("fabric")


def test_failed_start_shows_the_log(tmp_path: Path) -> None:
    (tmp_path / "disks").write_text("in the way")
    (tmp_path / "admin.sock").mkdir()
    with pytest.raises(RuntimeError, match=r"admin\.sock"):
        client.start(tmp_path)
