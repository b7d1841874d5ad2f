"""What is learned about subnets that are nearly full."""

from __future__ import annotations

from vnetpods_operator.planning.subnets import FIRST_PAUSE, LONGEST_PAUSE, Subnets

S = "/x/subnets/Pods"


def test_half_when_nobody_says_how_many_are_left() -> None:
    subnets = Subnets()
    assert subnets.refused(S, 16, None, 0).grow_most == 8
    assert subnets.limits(S.upper()).grow_most == 8


def test_as_many_as_are_said_to_be_left() -> None:
    assert Subnets().refused(S, 16, 11, 0).grow_most == 11


def test_azure_is_not_believed_when_it_contradicts_itself() -> None:
    assert Subnets().refused(S, 16, 200, 0).grow_most == 8


def test_a_pause_when_nothing_is_left_longer_each_time() -> None:
    subnets = Subnets()
    pauses, now = [], 100.0
    for _ in range(8):
        pauses.append(subnets.refused(S, 1, None, now).grow_after - now)
        now += pauses[-1]
    assert pauses[:3] == [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]
    assert pauses[-1] == LONGEST_PAUSE
    assert subnets.refused(S, 16, 0, 0.0).grow_after > 0


def test_what_was_asked_at_the_same_time_is_one_round() -> None:
    subnets = Subnets()
    assert {subnets.refused(S, 1, 0, 100.0 + number).grow_after for number in range(10)} == {100.0 + FIRST_PAUSE}
    assert subnets.refused(S, 1, 0, 200.0).grow_after == 200.0 + 2 * FIRST_PAUSE


def test_success_makes_bolder() -> None:
    subnets = Subnets()
    subnets.refused(S, 16, None, 0)
    subnets.granted(S)
    assert subnets.limits(S).grow_most == 16
    for _ in range(4):
        subnets.granted(S)
    assert subnets.limits(S).grow_most == 256


def test_what_is_given_back_ends_the_pause() -> None:
    subnets = Subnets()
    subnets.refused(S, 1, None, 0)
    assert subnets.given_back(S)
    assert subnets.limits(S).grow_after == 0
    assert not subnets.given_back(S)
