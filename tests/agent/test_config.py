from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vnetpods_agent.config import Config, ConfigError, load


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
    paths: {state: /tmp/s, cniBin: /tmp/b}
    source: {file: /tmp/pool.yaml}
    chained: [portmap]
    """
    config = load(written(tmp_path, text), {})
    assert (config.cooldown, config.chained) == (5.0, ("portmap",))
    assert (config.paths.ledger, config.paths.cni_bin) == (Path("/tmp/s/ledger.db"), Path("/tmp/b"))
    assert config.source.file == Path("/tmp/pool.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("cooldwon: 5", "unknown field `cooldwon`", id="unknown-key"),
        pytest.param("paths: {sate: /x}", "unknown field `sate`", id="unknown-key-below"),
        pytest.param("cooldown: soon", "cooldown: 'soon': Expected `float`, got `str`", id="type"),
        pytest.param("cooldown: -1", "cooldown: -1: Expected `float` >= 0", id="bound"),
        pytest.param("http: {port: 70000}", "http.port: 70000: Expected `int` <= 65535", id="bound-below"),
        pytest.param("paths: {state: here}", "paths.state: 'here': Expected an absolute path", id="path"),
        pytest.param("logLevel: loud", "logLevel: 'loud': Expected `str` matching regex", id="choice"),
        pytest.param("chained: portmap", "chained: 'portmap': Expected `array`", id="list"),
        pytest.param("chained: [portmap, 3]", "chained[1]", id="list-item"),
        pytest.param("- a", "Expected `object`", id="no-mapping"),
        pytest.param("a: [", "is no YAML", id="no-yaml"),
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
    assert "can't be read" in refusal(tmp_path / "none.yaml")


def test_without_access_it_ends_too(tmp_path: Path) -> None:
    state = f"node: a\npaths: {{state: {tmp_path}, socket: {tmp_path}/s}}"
    assert "KUBERNETES_SERVICE_HOST is not set" in refusal(written(tmp_path, state))
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("contexts: []")
    path = written(tmp_path, f"{state}\nsource: {{kubernetes: {{kubeconfig: {kubeconfig}}}}}")
    assert f"kubeconfig {kubeconfig} can't be used" in refusal(path)
