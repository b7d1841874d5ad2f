"""A short run of the fuzzer with a fixed seed; the long one is `python -m tests.agent.fuzz`."""

from __future__ import annotations

from tests.agent.fuzz import fuzz


def test_fuzz() -> None:
    said: list[str] = []
    fuzz(seed=20261125, runs=150, say=said.append)
    assert said == [
        "decoder: 15000 runs, nothing found",
        "server: 1500 runs, nothing found",
        "shim: 150 runs, nothing found",
    ]
