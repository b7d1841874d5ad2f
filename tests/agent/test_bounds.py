"""Whatever a caller sends, of whatever size up to the caps: an answer goes out, and its log line can be read."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.agent.plugin import plugin
from vnetpods_agent.cni import protocol
from vnetpods_agent.cni.frames import (
    ANSWER_CAP,
    ENVIRONMENT_CAP,
    STDIN_CAP,
    Command,
    RequestFrame,
    decode_answer,
    encode_answer,
    encode_environment,
    encode_request,
)
from vnetpods_agent.cni.protocol import CniError, Code
from vnetpods_agent.cni.server import Server

ERROR_CAP = 64 * 1024
LINE_CAP = 16 * 1024

pieces = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=8)  # surrogates, too


def long(most: int) -> st.SearchStrategy[str]:
    """Texts of every size up to `most` bytes or so."""
    sizes = st.sampled_from((0, 1, 100, 5000, most // 4))
    return st.builds(lambda piece, size: (piece * (size // len(piece) + 1))[:size], pieces, sizes)


def lines_of(logs: list[Any]) -> list[int]:
    return [len(json.dumps(line, default=str)) for line in logs]


@given(st.sampled_from(Code), long(STDIN_CAP), long(STDIN_CAP), long(STDIN_CAP))
def test_any_error_has_a_body_of_bounded_size(code: Code, message: str, details: str, version: str) -> None:
    body = protocol.error_body(CniError(code, message, details), version)
    assert len(body) < ERROR_CAP
    said = json.loads(body)
    assert (said["code"], said["cniVersion"]) == (code, "1.1.0")
    if len(message) > 1000:
        assert said["msg"].endswith(f"… ({len(message)} characters)")


NAMES = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS")
KEYS = ("cniVersion", "name", "prevResult", "cni.dev/valid-attachments", "runtimeConfig")
environments = st.dictionaries(st.sampled_from(NAMES), long(ENVIRONMENT_CAP // 8), max_size=3)
values = st.recursive(
    long(STDIN_CAP // 8) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("ips", "interfaces", "x")), inner),
    max_leaves=4,
)
configurations = st.dictionaries(st.sampled_from(KEYS), values, max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(Command), environments, configurations)
async def test_any_call_is_answered(verb: Command, env: dict[str, str], conf: dict[str, Any]) -> None:
    if args := env.get("CNI_ARGS"):
        env["CNI_ARGS"] = f"K8S_POD_NAMESPACE={args};K8S_POD_NAME={args}"
    with tempfile.TemporaryDirectory() as folder, capture_logs() as logs:
        async with plugin(Path(folder), "10.0.0.5") as called:
            response = await called.call(verb, env=env, conf=conf, within=0.01)
            await asyncio.sleep(0)
            assert [line["event"] for line in logs if line.get("verb")] == ["call"]
    assert len(encode_answer(response)) <= ANSWER_CAP
    if response.exit_code:
        assert len(response.stdout) < ERROR_CAP
        assert json.loads(response.stdout)["code"] != Code.INTERNAL
    assert max(lines_of(logs)) < LINE_CAP


TOO_LONG = {
    "name": (Command.ADD, {}, {"name": "-" * 300_000}, 7),
    "name-that-needs-escapes": (Command.ADD, {}, {"name": "\x01" * 150_000}, 7),
    "container-of-a-del": (Command.DEL, {"CNI_CONTAINERID": "/" * 30_000}, {}, 4),
    "cniVersion": (Command.STATUS, {}, {"cniVersion": "1" * 300_000}, 1),
    "prevResult": (Command.ADD, {}, {"prevResult": {"x": "é" * 516_000}}, 7),
    "prevResult-that-grows": (Command.ADD, {}, {"prevResult": {"x": [1e15] * 60_000}}, 7),
    "container": (Command.ADD, {"CNI_CONTAINERID": "/" * 30_000}, {}, 4),
    "interface": (Command.ADD, {"CNI_IFNAME": "\x7f" * 30_000}, {}, 4),
    "namespace": (Command.ADD, {"CNI_NETNS": "\x02" * 30_000}, {}, 4),
    "pod": (Command.ADD, {"CNI_ARGS": "K8S_POD_NAMESPACE=\udcff;K8S_POD_NAME=" + "\udcfe" * 200}, {}, 4),
    "command": (Command.OTHER, {"CNI_COMMAND": "\x02" * 30_000}, {}, 4),
}


@pytest.mark.parametrize(("verb", "env", "conf", "code"), TOO_LONG.values(), ids=TOO_LONG)
async def test_what_is_too_long_is_answered_over_the_socket(
    tmp_path: Path, verb: Command, env: dict[str, str], conf: dict[str, Any], code: int
) -> None:
    variables = {
        "CNI_COMMAND": verb.name,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/n1",
        "CNI_IFNAME": "eth0",
    } | env
    config = {"cniVersion": "1.1.0", "name": "vnetpods"} | conf
    stdin = json.dumps(config, ensure_ascii=False).replace("1000000000000000.0", "1e15").encode()
    assert len(stdin) <= STDIN_CAP
    async with plugin(tmp_path, "10.0.0.5") as called:
        server = Server(tmp_path / "agent.sock", called.verbs.handle)
        await server.start()
        try:
            with capture_logs() as logs:
                reader, writer = await asyncio.open_unix_connection(server.file.path)
                writer.write(encode_request(RequestFrame(verb, 5000, encode_environment(variables), stdin)))
                answer = decode_answer(await reader.read())
                writer.close()
        finally:
            await server.stop(grace=0)
        assert called.desk.attachments.by_key == {}
    assert answer is not None, "the agent closed the connection"
    assert json.loads(answer.stdout)["code"] == code
    assert len(answer.stdout) < ERROR_CAP
    assert max(lines_of(logs)) < LINE_CAP


async def test_a_prev_result_that_just_fits_is_passed_on(tmp_path: Path) -> None:
    """With the longest path of a namespace; beyond this size an ADD is refused before anything is done."""
    longest = {"x": "y" * (ANSWER_CAP - 32 * 1024 - len('{"x":""}'))}
    env = {"CNI_NETNS": "\x01" * 4095}
    async with plugin(tmp_path, "10.0.0.5") as called:
        response = await called.call(Command.ADD, env=env, conf={"prevResult": longest})
        assert json.loads(response.stdout)["x"] == longest["x"]
        assert len(encode_answer(response)) <= ANSWER_CAP
        longest["x"] += "y"
        assert (await called.refused(Command.ADD, env=env, conf={"prevResult": longest}))[0] == 7
