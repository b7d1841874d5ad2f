from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vnetpods_agent.config import Config, Docker, Imds, Interval, load
from vnetpods_kit.config import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "agent.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n"])
def test_every_key_has_a_default(tmp_path: Path, text: str) -> None:
    assert load(written(tmp_path, text), {"NODE_NAME": "worker-1"}) == Config(node="worker-1")


def test_the_file_goes_before_the_environment(tmp_path: Path) -> None:
    assert load(written(tmp_path, "node: a"), {"NODE_NAME": "b"}).node == "a"


def test_keys(tmp_path: Path) -> None:
    text = """
    cooldown: 5
    source: {file: /tmp/pool.yaml, confirmation: 1m30s}
    sweepInterval: 500ms
    paths: {state: /tmp/s, cniBin: /tmp/b}
    chained: [portmap]
    """
    config = load(written(tmp_path, text), {})
    assert (config.cooldown, config.chained) == (5.0, ("portmap",))
    assert (config.source.confirmation, config.sweep_interval) == (90.0, 0.5)
    assert (config.paths.ledger, config.paths.cni_bin) == (Path("/tmp/s/ledger.db"), Path("/tmp/b"))
    assert config.source.file == Path("/tmp/pool.yaml")


def test_instance_metadata_as_the_source(tmp_path: Path) -> None:
    """It needs no node's name."""
    assert load(written(tmp_path, "source: {imds: {}}"), {}).source.imds == Imds(interval=Interval(15))
    imds = load(written(tmp_path, "source: {imds: {interval: 1m, directCIDRs: [10.8.0.0/16]}}"), {}).source.imds
    assert imds == Imds(interval=Interval(60), direct_cidrs=("10.8.0.0/16",))


def test_docker_is_served_only_when_asked_for(tmp_path: Path) -> None:
    base = "source: {imds: {}}"
    assert load(written(tmp_path, base), {}).docker is None
    assert load(written(tmp_path, f"{base}\ndocker: {{}}"), {}).docker == Docker()
    docker = load(written(tmp_path, f"{base}\ndocker: {{socket: /run/d.sock, ports: ignore}}"), {}).docker
    assert docker == Docker(socket=Path("/run/d.sock"), ports="ignore")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("docker: {ports: publish}", "docker.ports: 'publish': Expected one of", id="choice-of-docker"),
        pytest.param("cooldwon: 5", "cooldwon: unknown key; docs/agent.md lists the known ones", id="unknown-key"),
        pytest.param("paths: {sate: /x}", "paths.sate: unknown key", id="unknown-key-below"),
        pytest.param("cooldown: soon", "cooldown: 'soon': Expected a duration such as `30s`", id="type"),
        pytest.param("cooldown: -1", "cooldown: -1: Expected a duration of at least 0 s", id="bound"),
        pytest.param("cooldown: 2d", "cooldown: '2d': Expected a duration of at most 86400 s", id="bound-of-text"),
        pytest.param("cooldown: true", "cooldown: True: Expected a duration", id="no-number"),
        pytest.param("sweepInterval: 10ms", "sweepInterval: '10ms': Expected a duration of at least 0.1 s", id="pause"),
        pytest.param("http: {port: 70000}", "http.port: 70000: Expected `int` <= 65535", id="bound-below"),
        pytest.param("paths: {state: here}", "paths.state: 'here': Expected an absolute path", id="path"),
        pytest.param(
            "logLevel: loud", "logLevel: 'loud': Expected one of `debug`, `error`, `info`, `warning`", id="choice"
        ),
        pytest.param("chained: portmap", "chained: 'portmap': Expected `array`", id="list"),
        pytest.param("chained: [portmap, 3]", "chained[1]: 3: Expected `str`", id="list-item"),
        pytest.param("- a", "the file: ['a']: Expected `object`", id="no-mapping"),
        pytest.param("a: [", "is not YAML", id="no-yaml"),
        pytest.param(
            "source: {imds: {}, file: /tmp/p}", "source: `file` and `imds` both say where addresses come from", id="two"
        ),
        pytest.param(
            "source: {imds: {interval: 500ms}}", "source.imds.interval: '500ms': Expected a duration", id="too-often"
        ),
        pytest.param(
            "source: {imds: {directCIDRs: [all]}}",
            "source.imds.directCIDRs[0]: 'all': Expected a CIDR such as `10.0.0.0/8`",
            id="range",
        ),
        pytest.param("{}", "node: is missing, and so is the environment variable NODE_NAME", id="no-node"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def refusal(path: Path) -> str:
    """What the program says on standard error before it gives up."""
    command = [sys.executable, "-m", "vnetpods_agent", "run", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin"}, check=False)
    assert done.returncode == 2, done
    return done.stderr


def test_the_program_says_so_and_ends(tmp_path: Path) -> None:
    path = written(tmp_path, "cooldown: soon\nnode: a")
    assert refusal(path).startswith(f"vnetpods-agent: {path}: cooldown: 'soon'")
    assert "cannot be read" in refusal(tmp_path / "none.yaml")


def test_without_access_it_ends_too(tmp_path: Path) -> None:
    state = f"node: a\npaths: {{state: {tmp_path}, socket: {tmp_path}/s}}"
    assert "KUBERNETES_SERVICE_HOST is not set" in refusal(written(tmp_path, state))
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("contexts: []")
    path = written(tmp_path, f"{state}\nsource: {{kubernetes: {{kubeconfig: {kubeconfig}}}}}")
    assert f"kubeconfig {kubeconfig} can't be used" in refusal(path)
