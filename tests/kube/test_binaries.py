"""Sources of programs: the three in their order, and a build that two callers request at once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.kube import binaries
from tests.kube.binaries import BuildError, Source

GO = """#!/bin/sh
if [ "$1" = env ]; then echo go1.99.0; exit; fi
echo "$@" >> "$VNETPODS_CACHE/calls"
[ -z "$GO_FAILS" ] || { echo "go: module lookup disabled" >&2; exit 1; }
sleep 0.3
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; last=$1; shift; done
case $out in */) out=$out${last##*/};; esac
echo built > "$out"
"""
"""A go command that logs its calls and "builds" one program."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a PATH with the go above and the tools of a shell script."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "cache").mkdir()
    program(tmp_path / "bin" / "go", GO)
    monkeypatch.setenv("VNETPODS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin")
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def version_says(path: Path, version: str) -> Path:
    return program(path, f"#!/bin/sh\necho helm v{version}+gdeadbee\n")


def test_the_folder_named_by_the_convention_wins(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "assets").mkdir()
    mine = program(place / "assets" / "helm", "#!/bin/sh\n")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(mine.parent))
    assert binaries.program("helm") == mine
    assert not (place / "cache" / "calls").exists()


def test_a_program_on_path_is_used_only_in_the_pinned_version(place: Path) -> None:
    pinned = next(source.version for source in binaries.SOURCES if source.module == "helm")
    found = version_says(place / "bin" / "helm", pinned)
    assert binaries.program("helm") == found
    version_says(found, pinned + "1")
    assert binaries.program("helm").is_relative_to(place / "cache")


def test_a_program_is_built_once_though_two_ask_for_it_at_the_same_time(place: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(binaries.program("crictl"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_text() for path in found] == ["built\n"] * 2
    assert len((place / "cache" / "calls").read_text().splitlines()) == 1
    assert sorted(path.name for path in found[0].parent.iterdir()) == ["crictl"]


def test_a_program_that_is_asked_for_twice_is_built_once(place: Path) -> None:
    assert [path.read_text() for path in binaries.programs("crictl", "crictl").values()] == ["built\n"]


def test_a_failed_build_says_what_go_said_and_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GO_FAILS", "yes")
    with pytest.raises(BuildError, match=r"crictl: .*module lookup disabled(.|\n)*KUBEBUILDER_ASSETS"):
        binaries.program("crictl")
    monkeypatch.delenv("GO_FAILS")
    assert binaries.program("crictl").read_text() == "built\n"


def test_what_goes_into_a_build_names_its_folder() -> None:
    packages = {"etcd": "go.etcd.io/etcd/server/v3"}
    plain, flagged = Source("etcd", "1", packages), Source("etcd", "1", packages, {"main.version": "1"})
    assert plain.folder() != flagged.folder()
    assert plain.folder() == Source("etcd", "1", packages).folder()


def test_an_unknown_program_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BuildError, match=r"called 'kubeadm'; known are bandwidth, .*kube-apiserver"):
        binaries.program("kubeadm")


def test_an_isolated_process_reaches_the_internet_through_an_ancestor() -> None:
    prefix = binaries.outside_network()
    assert prefix[0] == "nsenter"
    namespace = Path(prefix[1].removeprefix("--net="))
    assert namespace.stat().st_ino != Path("/proc/self/ns/net").stat().st_ino
    assert f"/proc/{os.getpid()}/" not in prefix[1]
