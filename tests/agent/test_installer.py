"""What is put on the host for the runtime: whole or absent at every moment, last in, first out."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest
from structlog.testing import capture_logs

from vnetpods_agent.installer import (
    CONFLIST,
    Installation,
    InstallError,
    conflist,
    install_conflist,
    install_shim,
    uninstall,
)

# The configuration format of the CNI specification 1.1.0, as a schema.
SCHEMA = {
    "type": "object",
    "required": ["cniVersion", "name", "plugins"],
    "properties": {
        "cniVersion": {"enum": ["0.4.0", "1.0.0", "1.1.0"]},
        "cniVersions": {"type": "array", "items": {"pattern": r"^\d+\.\d+\.\d+$"}, "uniqueItems": True},
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]*$"},
        "plugins": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}},
        },
    },
    "additionalProperties": False,
}


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    return tmp_path / "bin"


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    return tmp_path / "net.d"


def source(tmp_path: Path, text: str = "one") -> Path:
    path = tmp_path / f"shim-{text}"
    path.write_text(f"#!/bin/sh\necho {text}\n")
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_conflist_is_ours_alone_by_default(bin_dir: Path) -> None:
    config = conflist(bin_dir=bin_dir)
    jsonschema.validate(config, SCHEMA)
    assert config == {
        "cniVersion": "1.0.0",  # containerd 1.6 and 1.7 know no later one, and not cniVersions
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "vnetpods",
        "plugins": [{"type": "vnetpods", "capabilities": {"io.kubernetes.cri.pod-annotations": True, "ips": True}}],
    }


def test_plugins_are_chained_when_they_are_there(bin_dir: Path) -> None:
    bin_dir.mkdir()
    (bin_dir / "portmap").touch()
    config = conflist(("portmap", "bandwidth"), bin_dir=bin_dir)
    jsonschema.validate(config, SCHEMA)
    assert [plugin["type"] for plugin in config["plugins"]] == ["vnetpods", "portmap"]
    assert config["plugins"][1]["capabilities"] == {"portMappings": True}


def test_plugin_that_isnt_known_is_refused(bin_dir: Path) -> None:
    with pytest.raises(InstallError, match="plugin 'tuning' can't be chained; known are bandwidth, portmap"):
        conflist(("tuning",), bin_dir=bin_dir)


def test_shim_is_installed_executable_and_only_when_it_differs(tmp_path: Path, bin_dir: Path) -> None:
    assert install_shim(source(tmp_path), bin_dir)
    target = bin_dir / "vnetpods"
    assert target.stat().st_mode & 0o7777 == 0o755
    inode = target.stat().st_ino
    assert not install_shim(source(tmp_path), bin_dir)
    assert target.stat().st_ino == inode
    assert install_shim(source(tmp_path, "two"), bin_dir)
    assert subprocess.run([target], capture_output=True, check=True).stdout == b"two\n"
    assert files(bin_dir) == ["vnetpods"]


@pytest.mark.parametrize("damage", ["mode", "content", "symlink"])
def test_what_others_did_to_it_is_put_right(tmp_path: Path, bin_dir: Path, damage: str) -> None:
    install_shim(source(tmp_path), bin_dir)
    target = bin_dir / "vnetpods"
    if damage == "mode":
        target.chmod(0o644)
    elif damage == "content":
        target.write_text("x")
    else:
        target.unlink()
        target.symlink_to(source(tmp_path))
    assert install_shim(source(tmp_path), bin_dir)
    assert not target.is_symlink()
    assert subprocess.run([target], capture_output=True, check=True).stdout == b"one\n"


def test_running_shim_can_be_replaced(tmp_path: Path, bin_dir: Path) -> None:
    """No "text file busy", and the one that runs finishes with the program it began."""
    bin_dir.mkdir()
    sleep = tmp_path / "sleep"
    sleep.write_bytes(Path("/bin/sleep").read_bytes())
    install_shim(sleep, bin_dir)
    with subprocess.Popen([bin_dir / "vnetpods", "30"]) as running:
        assert install_shim(source(tmp_path), bin_dir)
        assert running.poll() is None
        running.kill()


def test_missing_source_is_an_error_that_names_it(tmp_path: Path, bin_dir: Path) -> None:
    with pytest.raises(InstallError, match=r"shim can't be read from .*none: No such file"):
        install_shim(tmp_path / "none", bin_dir)


def test_folder_that_cant_be_written_is_an_error_that_names_the_file(tmp_path: Path, conf_dir: Path) -> None:
    conf_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "conf", conf_dir], check=True)
    try:
        with pytest.raises(InstallError, match=f"{CONFLIST} can't be written: Read-only file system; is its folder"):
            install_conflist(conf_dir, conflist(bin_dir=tmp_path))
    finally:
        subprocess.run(["umount", conf_dir], check=True)


def test_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path: Path, bin_dir: Path) -> None:
    bin_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "bin", bin_dir], check=True)
    try:
        install_shim(source(tmp_path), bin_dir)
        big = tmp_path / "big"
        big.write_bytes(bytes(100_000))
        with pytest.raises(InstallError, match="No space left on device"):
            install_shim(big, bin_dir)
        assert files(bin_dir) == ["vnetpods"]
        assert (bin_dir / "vnetpods").read_bytes() == source(tmp_path).read_bytes()
    finally:
        subprocess.run(["umount", bin_dir], check=True)


def test_uninstall_takes_ours_and_nothing_else(tmp_path: Path, bin_dir: Path, conf_dir: Path) -> None:
    install_shim(source(tmp_path), bin_dir)
    install_conflist(conf_dir, conflist(bin_dir=bin_dir))
    (bin_dir / "ptp").touch()
    (conf_dir / "10-other.conflist").touch()
    (bin_dir / ".vnetpods.1-1.tmp").touch()
    uninstall(bin_dir, conf_dir)
    assert files(bin_dir) == ["ptp"]
    assert files(conf_dir) == ["10-other.conflist"]
    uninstall(bin_dir, conf_dir)  # nothing there is nothing to do
    uninstall(tmp_path / "no", tmp_path / "such")


def test_conflist_goes_before_the_shim(tmp_path: Path, bin_dir: Path, conf_dir: Path) -> None:
    """A conflist without its program fails every pod of the node."""
    install_shim(source(tmp_path), bin_dir)
    install_conflist(conf_dir, conflist(bin_dir=bin_dir))
    subprocess.run(["mount", "--bind", bin_dir, bin_dir], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", bin_dir], check=True)
    try:
        with pytest.raises(InstallError, match="vnetpods can't be removed: Read-only file system"):
            uninstall(bin_dir, conf_dir)
    finally:
        subprocess.run(["umount", bin_dir], check=True)
    assert files(conf_dir) == []
    assert files(bin_dir) == ["vnetpods"]


def test_what_a_killed_installer_left_is_removed_by_the_next(tmp_path: Path, bin_dir: Path) -> None:
    bin_dir.mkdir()
    old, fresh = bin_dir / ".vnetpods.7-1.tmp", bin_dir / ".vnetpods.8-1.tmp"
    old.touch()
    fresh.touch()  # of an installer at work
    os.utime(old, (time.time() - 3600,) * 2)
    install_shim(source(tmp_path), bin_dir)
    assert files(bin_dir) == [".vnetpods.8-1.tmp", "vnetpods"]


def read_by_libcni(folder: Path) -> list[str]:
    """The files of which libcni would read each (ConfFiles: .conf, .conflist, .json)."""
    return [name for name in files(folder) if name.endswith((".conf", ".conflist", ".json"))]


def test_reader_in_a_tight_loop_finds_a_whole_conflist_or_none(tmp_path: Path, conf_dir: Path) -> None:
    """aws#1437: the runtime read a half-written conflist."""
    conf_dir.mkdir()
    versions = [conflist(bin_dir=tmp_path) | {"disableCheck": size * "x"} for size in (1, 100_000)]
    seen: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for name in read_by_libcni(conf_dir):
                assert name == CONFLIST
                try:
                    content = (conf_dir / name).read_bytes()
                except FileNotFoundError:
                    continue
                seen.add(versions.index(json.loads(content)))

    reader = threading.Thread(target=read)
    failures: list[object] = []
    reader_error = threading.excepthook
    threading.excepthook = lambda args: failures.append(args.exc_value)
    reader.start()
    try:
        for turn in range(300):
            install_conflist(conf_dir, versions[turn % 2])
            if turn % 10 == 9:
                uninstall(tmp_path / "bin", conf_dir)
        install_conflist(conf_dir, versions[0])
        while len(seen) < 2 and not failures:
            install_conflist(conf_dir, versions[len(seen) % 2])
    finally:
        stop.set()
        reader.join()
        threading.excepthook = reader_error
    assert failures == []
    assert seen == {0, 1}


def _install_for_ever(conf_dir: Path, bin_dir: Path, shims: list[Path], configs: list[dict[str, object]]) -> None:
    while True:
        for shim, config in zip(shims, configs, strict=True):
            install_shim(shim, bin_dir)
            install_conflist(conf_dir, config)


def test_installer_killed_at_any_moment_leaves_whole_files(tmp_path: Path, bin_dir: Path, conf_dir: Path) -> None:
    configs = [conflist(bin_dir=bin_dir) | {"name": name} for name in ("first", "second")]
    shims = [source(tmp_path, "first"), source(tmp_path, "second")]
    install_conflist(conf_dir, configs[0])
    install_shim(shims[0], bin_dir)
    context = multiprocessing.get_context("fork")
    for turn in range(40):
        installer = context.Process(target=_install_for_ever, args=(conf_dir, bin_dir, shims, configs))
        installer.start()
        time.sleep(0.004 + 0.0007 * turn)
        assert installer.pid
        os.kill(installer.pid, signal.SIGKILL)
        installer.join()
        assert read_by_libcni(conf_dir) == [CONFLIST]
        assert json.loads((conf_dir / CONFLIST).read_text()) in configs
        assert subprocess.run([bin_dir / "vnetpods"], capture_output=True, check=True).stdout in (
            b"first\n",
            b"second\n",
        )


def test_the_shim_appears_only_when_nobody_has_it_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that another thread forks while the file is written holds a copy of the descriptor until its exec."""
    source = tmp_path / "shim"
    source.write_text("#!/bin/sh\nexit 7\n")
    chmod = os.fchmod
    copies: list[int] = []

    def forked(fd: int, mode: int) -> None:
        chmod(fd, mode)
        copies.append(os.dup(fd))
        threading.Timer(0.1, os.close, copies).start()

    monkeypatch.setattr(os, "fchmod", forked)
    assert install_shim(source, tmp_path / "bin")
    assert copies
    assert subprocess.run([tmp_path / "bin" / "vnetpods"], check=False).returncode == 7


class TestInPlace:
    """What is there once doesn't stay by itself: other installers, clean-ups and people take it away."""

    def test_what_is_taken_away_or_changed_is_put_back(self, tmp_path: Path, bin_dir: Path, conf_dir: Path) -> None:
        installation = Installation(source(tmp_path), bin_dir, conf_dir)
        installation.ensure()
        before = (bin_dir / "vnetpods").read_bytes(), (conf_dir / CONFLIST).read_bytes()
        for harm in (
            (bin_dir / "vnetpods").unlink,
            (conf_dir / CONFLIST).unlink,
            lambda: (conf_dir / CONFLIST).write_text("{}"),
            lambda: (bin_dir / "vnetpods").chmod(0o600),
            lambda: shutil.rmtree(conf_dir),
        ):
            harm()
            installation.ensure()
            assert ((bin_dir / "vnetpods").read_bytes(), (conf_dir / CONFLIST).read_bytes()) == before
            assert installation.trouble == ""

    def test_a_read_only_folder_is_told_once_and_until_it_works(
        self, tmp_path: Path, bin_dir: Path, conf_dir: Path
    ) -> None:
        conf_dir.mkdir()
        installation = Installation(source(tmp_path), bin_dir, conf_dir)
        with read_only(conf_dir):
            with capture_logs() as logs:
                for _ in range(3):
                    installation.ensure()
            assert f"{conf_dir / CONFLIST} can't be written: Read-only file system" in installation.trouble
            assert [line["event"] for line in logs if line["log_level"] == "error"] == ["installation"]
        installation.ensure()
        assert (installation.trouble, files(conf_dir)) == ("", [CONFLIST])

    def test_a_plugin_that_isnt_known_is_named(self, tmp_path: Path, bin_dir: Path, conf_dir: Path) -> None:
        installation = Installation(source(tmp_path), bin_dir, conf_dir, ("tuning",))
        installation.ensure()
        assert installation.trouble == "plugin 'tuning' can't be chained; known are bandwidth, portmap"

    def test_a_plugin_that_comes_later_is_chained_then(self, tmp_path: Path, bin_dir: Path, conf_dir: Path) -> None:
        installation = Installation(source(tmp_path), bin_dir, conf_dir, ("portmap",))
        with capture_logs() as logs:
            installation.ensure()
            installation.ensure()
        assert [line["left_out"] for line in logs if "left_out" in line] == [["portmap"]]
        (bin_dir / "portmap").touch()
        installation.ensure()
        assert "portmap" in (conf_dir / CONFLIST).read_text()

    def test_a_shim_that_is_there_needs_no_writable_folder(self, tmp_path: Path, bin_dir: Path, conf_dir: Path) -> None:
        """`vnetpods-agent install` has put it there, in an init container."""
        install_shim(source(tmp_path), bin_dir)
        (bin_dir / ".vnetpods.1-1.tmp").touch()  # an installer that was killed long ago
        os.utime(bin_dir / ".vnetpods.1-1.tmp", (0, 0))
        installation = Installation(source(tmp_path), bin_dir, conf_dir)
        with read_only(bin_dir):
            installation.ensure()
        assert (installation.trouble, files(conf_dir)) == ("", [CONFLIST])

    def test_another_versions_shim_serves_and_is_told(self, tmp_path: Path, bin_dir: Path, conf_dir: Path) -> None:
        """Shim and agent of neighbouring versions parse each other."""
        install_shim(source(tmp_path), bin_dir)
        installation = Installation(source(tmp_path, "two"), bin_dir, conf_dir)
        with read_only(bin_dir):
            installation.ensure()
        assert installation.trouble.startswith("the shim is not this version's")
        assert "`vnetpods-agent install`" in installation.trouble
        assert files(conf_dir) == [CONFLIST]

    def test_without_any_shim_no_pod_is_promised_anything(self, tmp_path: Path, bin_dir: Path, conf_dir: Path) -> None:
        bin_dir.mkdir()
        installation = Installation(source(tmp_path), bin_dir, conf_dir)
        with read_only(bin_dir):
            installation.ensure()
        assert installation.trouble.startswith("the shim is missing")
        assert not conf_dir.exists()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
