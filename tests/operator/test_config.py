"""The configuration file: what is understood, and how it is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs

from vnetpods_api import Sizing
from vnetpods_api.version import VERSION
from vnetpods_kit.config import ConfigError, Duration
from vnetpods_operator.__main__ import main
from vnetpods_operator.app import Operator
from vnetpods_operator.config import AddressRange, Config, Group, Machines, Selector, load, parse

DOCS = Path(__file__).parents[2] / "docs" / "operator.md"


def read(text: str) -> Config:
    return parse(yaml.safe_load(text), "operator.yaml")


def test_empty_is_all_defaults() -> None:
    assert read("") == Config()


def test_a_full_file() -> None:
    found = read(
        """
        logLevel: debug
        groups:
        - nodes: {matchLabels: {size: big}, matchExpressions: [{key: zone, operator: In, values: [a, b]}]}
          minimum: 64
        - {minimum: 8, warm: 8, batch: 8, maximum: 100, blocks: true}
        release: {after: 90}
        exclude: [10.0.0.9, 10.0.1.0-10.0.1.7, 10.0.2.0/24]
        directCIDRs: [192.168.0.0/16]
        azure: {endpoint: "http://127.0.0.1:8080", budget: {writes: {perSecond: 1, burst: 5}}}
        audit: 1h30m
        """
    )
    assert found.group_of({"size": "big", "zone": "b"}).minimum == 64
    assert found.group_of({"size": "big", "zone": "c"}).minimum == 8
    assert float(found.release.after) == 90
    assert float(found.audit) == 5400
    assert found.exclude[1].bounds == (0x0A000100, 0x0A000107)
    assert found.azure.budget.writes.per_second == 1


REFUSED = [
    ("azur: {}", "operator.yaml: azur: unknown key"),
    ("azure: {endpint: x}", "operator.yaml: azure.endpint: unknown key"),
    ("groups: [{warm: -1}]", "operator.yaml: groups[0].warm: -1: Expected `int` >= 0"),
    ("groups: [{minimum: 300}]", "Expected `minimum` <= `maximum`, got 300 and 250"),
    ("groups: [{nodes: {matchLabels: {a: 1}}}]", "groups[0].nodes.matchLabels"),
    ("release: {after: -1}", "operator.yaml: release.after: -1: Expected a duration of at least 0 s"),
    ("release: {after: true}", "operator.yaml: release.after: True: Expected a duration such as `30s`"),
    ("release: {after: soon}", "Expected a duration such as `30s`, `10m` or `1h30m`, got `soon`"),
    ("audit: 5m3", "operator.yaml: audit: '5m3': Expected a duration"),
    ("exclude: [10.0.0.300]", "exclude[0]: '10.0.0.300': Expected an IPv4 address, `first-last` or a CIDR"),
    ("exclude: [10.0.0.9-10.0.0.1]", "in ascending order"),
    ("directCIDRs: [10.0.0.0]", "directCIDRs[0]: '10.0.0.0': Expected"),
    ("directCIDRs: [10.0.0.0/33]", "directCIDRs[0]: '10.0.0.0/33': Expected a CIDR such as `10.0.0.0/8`"),
    ("azure: {endpoint: 'ftp://x'}", "azure.endpoint: 'ftp://x': Expected"),
    ("azure: {budget: {reads: {perSecond: 0, burst: 1}}}", "azure.budget.reads.perSecond: 0: Expected `float` > 0"),
    ("election: {retry: 20s}", "Expected `retry` < `renew` < `duration`, got 20s, 10s and 15s"),
    ("audit: 0s", "operator.yaml: audit: '0s': Expected a duration of at least 0.001 s"),
    ("relist: 0ms", "operator.yaml: relist: '0ms': Expected a duration of at least 0.001 s"),
    ("azure: {poll: 0s}", "operator.yaml: azure.poll: '0s': Expected a duration of at least 0.001 s"),
    ("azure: {requestTimeout: 0s}", "azure.requestTimeout: '0s': Expected a duration of at least 0.001 s"),
    ("agents: {patience: 0s}", "agents.patience: '0s': Expected a duration of at least 0.001 s"),
    ("election: {retry: 0s}", "election.retry: '0s': Expected a duration of at least 0.001 s"),
    ("workers: true", "workers: True: Expected `int`, got `bool`"),
    ("logLevel: loud", "logLevel: 'loud': Expected one of `debug`, `error`, `info`, `warning`"),
    ("logLevel: 3", "logLevel: 3: Expected one of `debug`"),
    (
        "nodes: {matchExpressions: [{key: a, operator: Equals}]}",
        "nodes.matchExpressions[0].operator: 'Equals': Expected one of `DoesNotExist`, `Exists`, `In`, `NotIn`",
    ),
    ("[]", "operator.yaml: the file: []: Expected `object`, got `array`"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(text)
    assert words in str(refused.value)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", None], ids=["yaml", "bytes", "missing"])
def test_unreadable_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "operator.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load(path)


def test_the_program_refuses_before_it_starts_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "operator.yaml"
    path.write_text("groups: many")
    assert main(["--config", str(path), "--check"]) == 2
    assert f"vnetpods-operator: {path}: groups: 'many': Expected `array`" in capsys.readouterr().err
    path.write_text("")
    assert main(["--config", str(path), "--check"]) == 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10), ("1h30m", 5400), ("1.5m", 90), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "s", "10 s", "-1s", "1m30", "10S"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="Expected a duration"):
        Duration.parse(text)


def test_address_ranges() -> None:
    assert AddressRange.parse("10.0.0.0/30").bounds == (0x0A000000, 0x0A000003)
    with pytest.raises(ValueError, match="Expected an IPv4"):
        AddressRange.parse("10.0.0.1/30")


EXPRESSIONS = [
    ("In", {"z": "a"}, True),
    ("In", {"z": "c"}, False),
    ("In", {}, False),
    ("NotIn", {"z": "a"}, False),
    ("NotIn", {}, True),
    ("Exists", {"z": "x"}, True),
    ("Exists", {}, False),
    ("DoesNotExist", {}, True),
    ("DoesNotExist", {"z": ""}, False),
]


@pytest.mark.parametrize(("operator", "labels", "expected"), EXPRESSIONS)
def test_selectors(operator: str, labels: dict[str, str], expected: bool) -> None:
    values = ["a", "b"] if operator in ("In", "NotIn") else []
    selector = read(f"nodes: {{matchExpressions: [{{key: z, operator: {operator}, values: {values}}}]}}").nodes
    assert isinstance(selector, Selector)
    assert selector.matches(labels) is expected


def test_a_pools_own_sizes_are_held_against_the_group() -> None:
    assert Group().refined(Sizing(warm=3)).warm == 3
    assert Group().refined(None) == Group()
    with pytest.raises(ValueError, match="minimum"):
        Group(minimum=20).refined(Sizing(maximum=10, warm=1))


def test_every_key_is_documented() -> None:
    text = DOCS.read_text()
    for section in (Config, Group):
        for name in section.__struct_encode_fields__:
            assert re.search(rf"`(groups\[\]\.)?{name}[`.\[]", text), f"{name} is missing in docs/operator.md"


@pytest.mark.parametrize(
    ("patterns", "trusted", "allowed"),
    [
        ((), (), True),
        ((), ("s1/cluster",), True),
        ((), ("s1/other",), False),
        (("cluster",), ("s1/other",), True),
        (("CLUS*",), (), True),
        (("other",), ("s1/cluster",), False),
        (("s1/*",), (), True),
        (("s2/*",), (), False),
    ],
)
def test_which_machines_a_node_may_name(patterns: tuple[str, ...], trusted: tuple[str, ...], allowed: bool) -> None:
    assert Machines(resource_groups=patterns).allows("S1/Cluster", trusted) is allowed


def test_a_kubeconfig_that_is_missing_is_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "operator.yaml"
    path.write_text("logLevel: info")
    assert main(["--config", str(path), "--kubeconfig", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said == f"vnetpods-operator: {tmp_path / 'none'}: cannot be read: No such file or directory\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"vnetpods-operator {VERSION}\n")


async def test_a_bad_reload_is_told_once_and_shown_as_long_as_it_lasts(tmp_path: Path) -> None:
    path = tmp_path / "operator.yaml"
    path.write_text("logLevel: info")
    operator = Operator(path, None, load(path))
    path.write_text("{")
    with capture_logs() as logs:
        for _ in range(3):
            await operator._reload()
    assert [line["event"] for line in logs] == ["configuration not reloaded, the former one stays"]
    name = "vnetpods_operator_configuration_valid"
    assert operator._metrics.registry.get_sample_value(name) == 0
    path.write_text("logLevel: info")
    await operator._reload()
    assert operator._metrics.registry.get_sample_value(name) == 1
