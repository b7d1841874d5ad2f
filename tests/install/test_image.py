"""The image: what is in it and what isn't. Needs build/image.tar (`make image`) except for the parts that make it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.install import building

REPOSITORY = Path(__file__).parents[2]
built = pytest.mark.skipif(not building.ARCHIVE.exists(), reason=f"{building.ARCHIVE} is missing: make image")
PROGRAMS = ("opt/vnetpods/bin/vnetpods-operator", "opt/vnetpods/bin/vnetpods-agent", "usr/libexec/vnetpods/shim")


def test_every_package_of_the_wheel_is_sent_to_the_builder_and_copied() -> None:
    """A room that is missing there is missed only when somebody builds the image."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    sent = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = set(re.findall(r"(?m)^COPY (?!--)(.+) \S+$", (REPOSITORY / "Dockerfile").read_text()))
    for package in packages:
        room = package.partition("/")[0]
        assert room in sent
        assert copied & {room, package}


@built
def test_it_is_small_runs_as_nobody_and_says_what_it_is() -> None:
    found = building.describe(building.ARCHIVE)
    config = found["configuration"]["config"]
    assert found["bytes"] <= building.LARGEST
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["vnetpods-operator"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}", config["Labels"]["org.opencontainers.image.revision"])


@built
def test_it_has_the_programs_byte_compiled_and_neither_compiler_nor_pip() -> None:
    names = building.names(building.ARCHIVE)
    assert set(PROGRAMS) <= names
    assert any(re.search(r"vnetpods_agent/__pycache__/app\.cpython-313\.pyc$", name) for name in names)
    assert {"usr/sbin/nft", "usr/sbin/iptables-nft", "usr/sbin/iptables-legacy"} <= names
    unwanted = re.compile(r"(bin|-packages)/(gcc|cc|clang|zig|pip3?|ziglang|pytest|hypothesis|mypy)$|/ensurepip$")
    assert sorted(name for name in names if unwanted.search(name)) == []


def subset(*arguments: str) -> set[str]:
    """Names in what image/subset.py prints, run in this environment, which has the whole lock file installed."""
    lock = (REPOSITORY / "requirements.lock").read_text()
    command = [sys.executable, str(REPOSITORY / "image" / "subset.py"), *arguments]
    done = subprocess.run(command, input=lock, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[A-Za-z0-9])", done.stdout.strip()))
    return set(re.findall(r"(?m)^([A-Za-z0-9._-]+)==", done.stdout))


def test_the_image_gets_what_the_programs_need_and_nothing_of_the_tests() -> None:
    names = subset("--extra", "operator", "--extra", "agent")
    assert {
        "kopf",
        "pyroute2",
        "kubernetes",
        "azure-identity",
        "azure-mgmt-network",
        "aiohttp",
        "prometheus-client",
        "yarl",
        "msal",
    } <= names
    assert not names & {"pytest", "mypy", "ruff", "ziglang", "hatchling", "hypothesis", "rich", "import-linter"}


def test_one_name_brings_what_it_requires() -> None:
    assert subset("ziglang") == {"ziglang"}
    assert subset("hatchling") >= {"hatchling", "packaging", "pathspec", "pluggy", "trove-classifiers"}


def test_the_agent_never_loads_the_azure_sdk_nor_the_operators_libraries() -> None:
    program = "import vnetpods_agent.__main__, vnetpods_agent.app, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert not roots & {"azure", "msal", "kopf", "kubernetes", "vnetpods_operator"}
