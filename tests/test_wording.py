"""Many names are said in one sentence."""

from __future__ import annotations

import pytest

from vnetpods_kit.wording import some


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a; b"),
        (["a", "b", "c"], "a; b and 1 more"),
        ([str(number) for number in range(250)], "0; 1 and 248 more"),
    ],
)
def test_only_the_first_names_are_said(names: list[str], said: str) -> None:
    assert some(names, 2, "; ") == said
