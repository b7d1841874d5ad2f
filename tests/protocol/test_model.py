"""The protocol holds in every order of events that the model knows, and each of its safeguards is needed."""

from collections.abc import Sequence
from itertools import combinations

import pytest

from tests.protocol.model import (
    AGENT_DIES,
    BACKUP,
    BOOT,
    DELETE,
    DURABLE,
    FAULTS,
    NEW_DISK,
    OPERATOR_DIES,
    PROMISE,
    PROOF,
    REMOVED,
    REQUEST,
    RESTORE,
    RETIRED,
    ROLLBACK,
    SAFEGUARDS,
    SNAPSHOT,
    VIEW,
    explore,
)

pytestmark = pytest.mark.timeout(300)  # nothing but computing, up to 5 s of it, beside other tests on two cores

STORIES = [  # a fault may also stay away, so these hold every single fault, too
    *combinations((DELETE, OPERATOR_DIES, AGENT_DIES, NEW_DISK, BOOT), 2),
    (SNAPSHOT, ROLLBACK),
    (BACKUP, RESTORE),
]
NEEDED = [
    (REQUEST, (SNAPSHOT, ROLLBACK)),
    (RETIRED, (BACKUP, RESTORE)),
    (DURABLE, (AGENT_DIES,)),
    (PROMISE, (OPERATOR_DIES, NEW_DISK)),
    (VIEW, (BACKUP, NEW_DISK, RESTORE)),
    (PROOF, (OPERATOR_DIES, NEW_DISK)),
    (REMOVED, (BACKUP, NEW_DISK, RESTORE)),
]


@pytest.mark.parametrize("faults", STORIES, ids=", then ".join)
def test_nothing_breaks_whatever_the_order_of_events(faults: Sequence[str]) -> None:
    worlds, way = explore(faults)
    assert not way, "\n".join(way)
    assert worlds > 500


@pytest.mark.parametrize(("safeguard", "faults"), NEEDED, ids=[safeguard for safeguard, _ in NEEDED])
def test_without_a_safeguard_something_breaks(safeguard: str, faults: Sequence[str]) -> None:
    _, way = explore(faults, SAFEGUARDS - {safeguard})
    assert way, f"nothing breaks without this: {safeguard}"


def test_every_fault_is_tried() -> None:
    assert {fault for story in STORIES for fault in story} == set(FAULTS)


def test_every_safeguard_is_tried() -> None:
    assert {safeguard for safeguard, _ in NEEDED} == SAFEGUARDS
