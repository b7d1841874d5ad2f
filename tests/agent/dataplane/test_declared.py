"""One entry that nobody understands doesn't cost the node the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnetpods_agent.attachment import Address
from vnetpods_agent.dataplane import HostState, Nic
from vnetpods_agent.dataplane.host.declared import understood
from vnetpods_agent.dataplane.host.ruleset import collapsed

NIC = Nic("00:0d:3a:00:00:01", Address("10.240.0.4"), ("10.240.0.0/16",), ("10.240.0.5", "10.240.0.16/28"))
GOOD = HostState((NIC,), ("10.0.0.7/8", "0.0.0.0/0"))


def test_what_is_right_stays_as_it_is() -> None:
    assert understood(GOOD) == (GOOD, ())


@pytest.mark.parametrize(
    ("state", "kept", "said"),
    [
        pytest.param(replace(GOOD, direct=("10.0.0.0/33", *GOOD.direct)), GOOD, "direct CIDR: ", id="prefix"),
        pytest.param(replace(GOOD, direct=(*GOOD.direct, "2001:db8::/32")), GOOD, "direct CIDR: ", id="ipv6"),
        pytest.param(
            replace(GOOD, nics=(replace(NIC, addresses=("10.240.0.256", *NIC.addresses)),)),
            GOOD,
            f"address of NIC {NIC.mac}: ",
            id="address",
        ),
        pytest.param(
            replace(GOOD, nics=(replace(NIC, prefixes=("", *NIC.prefixes)),)),
            GOOD,
            f"prefix of NIC {NIC.mac}: ",
            id="subnet",
        ),
        pytest.param(
            replace(GOOD, nics=(NIC, replace(NIC, primary_address=Address("")))),
            GOOD,
            f"primary address of NIC {NIC.mac}: ",
            id="primary",
        ),
    ],
)
def test_what_is_not_is_left_out_and_named(state: HostState, kept: HostState, said: str) -> None:
    found, refused = understood(state)
    assert found == kept
    assert [entry.startswith(said) for entry in refused] == [True]


@given(st.lists(st.text(max_size=20) | st.sampled_from(["10.0.0.0/8", "1.2.3.4", "010.0.0.1", "1.2.3.4/032", "1/2/3"])))
def test_whatever_it_is_the_rest_can_be_used(entries: list[str]) -> None:
    found, refused = understood(HostState((), tuple(entries)))
    collapsed(found.direct)
    assert len(found.direct) + len(refused) == len(entries)
