"""The demo's record of what pools say for a moment only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.demo.history import History, Moment, growths
from tests.kube.apiserver import ApiServer

pytestmark = pytest.mark.apiserver
CRD = Path(__file__).parents[1] / "crds" / "nodeippool.yaml"
LATER = {"usage": None, "interfaces": None, "allocated": 0}
USAGE = {"assigned": 0, "cooling": 3, "free": 0, "waiting": 0}
INTERFACE = {"name": "nic", "mac": "00:0d:3a:1b:c7:21", "subnet": "pods", "primaryAddress": "10.240.0.4"}


def test_what_was_said_in_between_is_there_afterwards(apiserver: ApiServer, tmp_path: Path) -> None:
    apiserver.apply(CRD.read_text())
    kind = {"apiVersion": "vnetpods.io/v1alpha1", "kind": "NodeIPPool"}
    apiserver.apply(json.dumps(kind | {"metadata": {"name": "history"}, "spec": {}}))
    history = History(apiserver, tmp_path / "pools.txt")
    try:
        apiserver.wait("the watch", lambda: history.of("history"))
        releasing = INTERFACE | {"addresses": ["10.240.0.5"], "releasing": ["10.240.0.5"]}
        for status in ({"usage": USAGE}, {"interfaces": [releasing], "allocated": 1}, LATER):
            patch = json.dumps({"status": status})
            apiserver.kubectl("patch", "nodeippool", "history", "--subresource=status", "--type=merge", "-p", patch)
        apiserver.wait("all of it", lambda: len(history.of("history")) == 4)
        assert history.of("history") == [
            Moment("history", 0, 0, releasing=False),
            Moment("history", 0, 3, releasing=False),
            Moment("history", 1, 3, releasing=True),
            Moment("history", 0, 0, releasing=False),
        ]
        assert growths(history.of("history")) == 1
    finally:
        history.close()
