"""What the agent says of itself: in its log, in its metrics, on its command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from prometheus_client import generate_latest

from vnetpods_agent.__main__ import main
from vnetpods_agent.metrics import Metrics
from vnetpods_api import Usage
from vnetpods_api.version import VERSION

FAILS = """
import structlog
from vnetpods_kit import logs

def ask(authorization):
    headers = {"Authorization": authorization}
    raise RuntimeError("no answer")

logs.configure("info")
try:
    ask("Bearer " + "secret"[::-1])
except RuntimeError:
    structlog.get_logger().exception("failed")
"""


LIBRARIES = """
import logging
from vnetpods_kit import logs

logs.configure("info", ["chatty"])
logging.getLogger("chatty.part").info("each step of mine")
logging.getLogger("chatty.part").warning("trouble with %s", "it")
try:
    {}["token"]
except KeyError:
    logging.getLogger("asyncio").exception("never retrieved")
"""


def test_what_libraries_log_goes_the_same_way() -> None:
    said = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, check=True).stderr
    trouble, failed = map(json.loads, said.splitlines())
    assert (trouble["event"], trouble["level"], trouble["logger"]) == ("trouble with it", "warning", "chatty.part")
    assert (failed["event"], failed["exception"][0]["exc_type"]) == ("never retrieved", "KeyError")


def test_a_trace_tells_where_and_not_what_was_at_hand() -> None:
    said = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True, check=True).stderr
    line = json.loads(said)
    assert (line["event"], line["exception"][0]["exc_value"]) == ("failed", "no answer")
    assert [frame["name"] for frame in line["exception"][0]["frames"]] == ["<module>", "ask"]
    assert "terces" not in said


def test_metrics_say_the_version_and_nothing_twice() -> None:
    metrics = Metrics(Usage, {})
    metrics.observe("ADD", "ok", 0.1)
    shown = generate_latest(metrics.registry).decode()
    assert f'vnetpods_agent_build_info{{version="{VERSION}"}} 1.0' in shown
    assert "_created" not in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"vnetpods-agent {VERSION}\n")
    assert VERSION[0].isdigit()
