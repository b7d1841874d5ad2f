"""What is packed by hand means to an independent decoder what it should; and what that one packs is read correctly."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from vnetpods_agent.dataplane.netlink import messages as rt

CREATE = rt.NLM_F_REQUEST | rt.NLM_F_CREATE
HERE = rt.VethEnd("azv0123456789a", 0x40000002, "02:00:00:00:00:01", 1400, 65536)
THERE = rt.VethEnd("eth0", 0x40000003, "02:00:00:00:00:02", 1400, 62780)
MAC = "02:00:00:00:00:01"


def decoded(message: bytes, kind: type[Any]) -> dict[str, Any]:
    """Header fields and attributes in one flat dictionary; every byte must be used."""
    assert int.from_bytes(message[:4], "little") == len(message)
    assert len(message) % 4 == 0
    parsed = kind(message)
    parsed.decode()
    return {
        "nl_type": parsed["header"]["type"],
        "nl_flags": parsed["header"]["flags"],
        **{name: parsed[name] for name, _ in kind.fields},
        **_attributes(parsed),
    }


def _attributes(parsed: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in parsed["attrs"]}


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and "attrs" in value:
        return {**{k: v for k, v in value.items() if k not in {"attrs", "header"}}, **_attributes(value)}
    return value


CASES = [
    pytest.param(
        rt.link_set(7, rt.link_alias("vnetpods 10.0.0.5 n c/eth0"), up=True),
        ifinfmsg,
        {
            "nl_type": 16,
            "nl_flags": 1,
            "index": 7,
            "flags": 1,
            "change": 1,
            "IFLA_IFALIAS": "vnetpods 10.0.0.5 n c/eth0",
        },
        id="alias-and-up",
    ),
    pytest.param(
        rt.link_set(7, up=True, arp=False),
        ifinfmsg,
        {"index": 7, "flags": 0x81, "change": 0x81},
        id="up-and-deaf",
    ),
    pytest.param(rt.link_set(7, up=False), ifinfmsg, {"index": 7, "flags": 0, "change": 1}, id="down"),
    pytest.param(rt.link_set(7, rt.link_group(rt.PROTOCOL)), ifinfmsg, {"index": 7, "IFLA_GROUP": 118}, id="group"),
    pytest.param(rt.link_set(7, rt.link_mac(MAC)), ifinfmsg, {"IFLA_ADDRESS": MAC}, id="mac"),
    pytest.param(rt.link_set(7, rt.link_name("azvx")), ifinfmsg, {"IFLA_IFNAME": "azvx"}, id="name"),
    pytest.param(
        rt.link_get(name="eth0"),
        ifinfmsg,
        {"nl_type": 18, "nl_flags": 1, "index": 0, "IFLA_IFNAME": "eth0", "IFLA_EXT_MASK": 8},
        id="get-by-name",
    ),
    pytest.param(rt.link_get(9), ifinfmsg, {"nl_type": 18, "index": 9}, id="get-by-index"),
    pytest.param(rt.link_delete(9), ifinfmsg, {"nl_type": 17, "nl_flags": 1, "index": 9}, id="delete"),
    pytest.param(rt.link_delete(group=5), ifinfmsg, {"nl_type": 17, "index": 0, "IFLA_GROUP": 5}, id="delete-group"),
    pytest.param(rt.links_dump(), ifinfmsg, {"nl_type": 18, "nl_flags": 0x301, "IFLA_EXT_MASK": 8}, id="links"),
    pytest.param(
        rt.address_add("10.0.0.5", 32, 7),
        ifaddrmsg,
        {
            "nl_type": 20,
            "nl_flags": CREATE | rt.NLM_F_REPLACE,
            "family": 2,
            "prefixlen": 32,
            "index": 7,
            "scope": 0,
            "IFA_LOCAL": "10.0.0.5",
            "IFA_ADDRESS": "10.0.0.5",
        },
        id="address",
    ),
    pytest.param(
        rt.route_add(rt.Route("10.0.0.5", 32, 7)),
        rtmsg,
        {
            "nl_type": 24,
            "nl_flags": CREATE | rt.NLM_F_REPLACE,
            "family": 2,
            "dst_len": 32,
            "table": 254,
            "proto": 118,
            "scope": 253,
            "RTA_DST": "10.0.0.5",
            "RTA_OIF": 7,
            "RTA_TABLE": 254,
        },
        id="route",
    ),
    pytest.param(
        rt.route_add(rt.Route(rt.ANY, 0, 7, "10.0.0.1", table=11801, onlink=True)),
        rtmsg,
        {
            "dst_len": 0,
            "table": 0,
            "scope": 0,
            "flags": 4,
            "RTA_GATEWAY": "10.0.0.1",
            "RTA_TABLE": 11801,
            "RTA_OIF": 7,
        },
        id="default-route-of-a-nic",
    ),
    pytest.param(
        rt.route_delete(rt.Route("10.0.0.5", 32, 7)),
        rtmsg,
        {"nl_type": 25, "nl_flags": 1, "proto": 118, "RTA_DST": "10.0.0.5", "RTA_OIF": 7},
        id="route-delete",
    ),
    pytest.param(
        rt.neighbour_add("10.0.0.5", MAC, 7),
        ndmsg,
        {"nl_type": 28, "family": 2, "ifindex": 7, "state": 0x80, "NDA_DST": "10.0.0.5", "NDA_LLADDR": MAC},
        id="neighbour",
    ),
    pytest.param(
        rt.neighbour_delete("10.0.0.5", 7),
        ndmsg,
        {"nl_type": 29, "ifindex": 7, "NDA_DST": "10.0.0.5"},
        id="neighbour-delete",
    ),
    pytest.param(
        rt.rule_add(rt.Rule(11800, 0x200, 0xF00, 254, suppress_prefix=31)),
        fibmsg,
        {
            "nl_type": 32,
            "nl_flags": CREATE | rt.NLM_F_EXCL,
            "family": 2,
            "action": 1,
            "table": 254,
            "FRA_PRIORITY": 11800,
            "FRA_FWMARK": 0x200,
            "FRA_FWMASK": 0xF00,
            "FRA_SUPPRESS_PREFIXLEN": 31,
            "FRA_PROTOCOL": 118,
        },
        id="rule",
    ),
    pytest.param(
        rt.rule_delete(rt.Rule(11801, 0x200, 0xF00, 11802)),
        fibmsg,
        {"nl_type": 33, "table": 0, "FRA_TABLE": 11802, "FRA_PRIORITY": 11801},
        id="rule-delete",
    ),
]


@pytest.mark.parametrize(("message", "kind", "expected"), CASES)
def test_messages_mean_what_they_should(message: bytes, kind: type[Any], expected: dict[str, Any]) -> None:
    found = decoded(message, kind)
    assert {name: found.get(name) for name in expected} == expected


def test_a_veth_is_born_with_everything() -> None:
    found = decoded(rt.veth_create(HERE, THERE, 42), ifinfmsg)
    assert found["nl_flags"] == CREATE | rt.NLM_F_EXCL
    assert (found["index"], found["flags"]) == (HERE.index, 0)
    assert (found["IFLA_IFNAME"], found["IFLA_ADDRESS"], found["IFLA_MTU"]) == (HERE.name, HERE.mac, HERE.mtu)
    info = found["IFLA_LINKINFO"]
    assert info["IFLA_INFO_KIND"] == "veth"
    peer = info["IFLA_INFO_DATA"]["VETH_INFO_PEER"]
    assert peer["index"] == THERE.index
    assert (peer["IFLA_IFNAME"], peer["IFLA_ADDRESS"], peer["IFLA_MTU"]) == (THERE.name, THERE.mac, THERE.mtu)
    assert [end["IFLA_GSO_MAX_SIZE"] for end in (found, peer)] == [HERE.gso_max_size, THERE.gso_max_size]
    assert peer["IFLA_NET_NS_FD"] == 42


def test_an_alternative_name_is_added() -> None:
    found = decoded(rt.link_altname_add(7, "vnetpods-1"), ifinfmsg)
    assert (found["nl_type"], found["index"]) == (rt.RTM_NEWLINKPROP, 7)
    assert found["IFLA_PROP_LIST"]["IFLA_ALT_IFNAME"] == "vnetpods-1"


def packed(kind: type[Any], **fields: Any) -> bytes:
    """What pyroute2 packs, without the message header."""
    message = kind()
    message["attrs"] = fields.pop("attrs")
    for name, value in fields.items():
        message[name] = value
    message.encode()
    return bytes(message.data[16:])


def test_a_link_is_read() -> None:
    attrs = [
        ("IFLA_IFNAME", "azv1"),
        ("IFLA_ADDRESS", MAC),
        ("IFLA_MTU", 1400),
        ("IFLA_GSO_MAX_SIZE", 62780),
        ("IFLA_IFALIAS", "mine"),
        ("IFLA_LINK", 5),
        ("IFLA_GROUP", 9),
        ("IFLA_PROP_LIST", {"attrs": [("IFLA_ALT_IFNAME", "one"), ("IFLA_ALT_IFNAME", "two")]}),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]}),
    ]
    link = rt.read_link(packed(ifinfmsg, index=4, flags=0x81, attrs=attrs))
    assert link == rt.Link(4, "azv1", True, MAC, 1400, 62780, "mine", "veth", 9, 0, 5, ("one", "two"), arp=False)


@pytest.mark.parametrize("raw", [b"", b"\x01", b"\x03\x00\x01\x00rest", b"\x00\x00\x00\x00"])
def test_malformed_attributes_end_the_reading(raw: bytes) -> None:
    assert list(rt.attributes(raw)) == []
