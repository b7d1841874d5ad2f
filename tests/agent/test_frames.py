"""The codec between shim and agent, one table for both directions, in pieces of every size."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnetpods_agent.cni.frames import (
    ANSWER_CAP,
    ENVIRONMENT_CAP,
    STDIN_CAP,
    VERSION,
    AnswerFrame,
    Command,
    FrameError,
    RequestDecoder,
    RequestFrame,
    Response,
    answer_version,
    decode_answer,
    encode_answer,
    encode_environment,
    encode_request,
)

ADD_ENVIRONMENT = b"CNI_COMMAND=ADD\0CNI_CONTAINERID=c1\0CNI_IFNAME=eth0\0CNI_NETNS=/run/netns/x\0"

BOOT_ID = "3c4d6c5e-8b9f-4a53-9f0e-0c5a2c9e6f11"

# The protocols as they are on the wire and in spools. These bytes never change: a node's shim may be older than its
# agent.
REQUESTS = {
    "add with handles": (
        RequestFrame(Command.ADD, 110_000, ADD_ENVIRONMENT, b'{"name":"vnetpods"}', has_handles=True, version=1),
        b"VNP\x01\x01\x01\x00\x00\xb0\xad\x01\x00" + b"\x4a\x00\x00\x00" + b"\x13\x00\x00\x00"
        b"CNI_COMMAND=ADD\x00CNI_CONTAINERID=c1\x00CNI_IFNAME=eth0\x00CNI_NETNS=/run/netns/x\x00"
        b'{"name":"vnetpods"}',
    ),
    "del from the spool": (
        RequestFrame(Command.DEL, 15_000, b"CNI_COMMAND=DEL\0", b"{}", replayed=True, version=1),
        b"VNP\x01\x02\x02\x00\x00\x98\x3a\x00\x00\x10\x00\x00\x00\x02\x00\x00\x00CNI_COMMAND=DEL\x00{}",
    ),
    "nothing but a verb": (
        RequestFrame(Command.VERSION, 0, b"", b"", version=1),
        b"VNP\x01\x06\x00\x00\x00" + bytes(12),
    ),
    "status": (
        RequestFrame(Command.STATUS, 5000, b"", b"{}", version=1),
        b"VNP\x01\x05\x00\x00\x00\x88\x13\x00\x00" + bytes(4) + b"\2\0\0\0{}",
    ),
    "add without handles, protocol 2": (
        RequestFrame(Command.ADD, 110_000, b"CNI_COMMAND=ADD\0", b"{}", netns_errno=22, version=2),
        b"VNP\x02\x01\x00\x2e\x00\xb0\xad\x01\x00\x10\x00\x00\x00\x02\x00\x00\x00"
        b"\x16\x00" + bytes(8) + bytes(36) + b"CNI_COMMAND=ADD\x00{}",
    ),
    "del from the spool, protocol 2": (
        RequestFrame(Command.DEL, 15_000, b"", b"{}", replayed=True, boottime=1.5, boot_id=BOOT_ID, version=2),
        b"VNP\x02\x02\x02\x2e\x00\x98\x3a\x00\x00" + bytes(4) + b"\x02\x00\x00\x00"
        b"\x00\x00\x00\x2f\x68\x59\x00\x00\x00\x00" + BOOT_ID.encode() + b"{}",
    ),
}
ANSWERS = {
    "empty": (AnswerFrame(0, b"", 1), b"VNP\x01\x00\x00\x00\x00\x00\x00\x00\x00"),
    "error": (AnswerFrame(1, b'{"code":11}', 1), b'VNP\x01\x01\x00\x00\x00\x0b\x00\x00\x00{"code":11}'),
    "not text": (AnswerFrame(255, b"\0\xff", 1), b"VNP\x01\xff\x00\x00\x00\x02\x00\x00\x00\x00\xff"),
}


def header(
    *,
    magic: bytes = b"VNP",
    version: int = 1,
    verb: int = 1,
    flags: int = 0,
    extra: int = 0,
    env: int = 0,
    stdin: int = 0,
) -> bytes:
    return struct.pack("<3sBBBHIII", magic, version, verb, flags, extra, 1000, env, stdin)


@pytest.mark.parametrize(("frame", "encoded"), REQUESTS.values(), ids=REQUESTS)
def test_requests_are_these_bytes(frame: RequestFrame, encoded: bytes) -> None:
    assert encode_request(frame) == encoded
    assert RequestDecoder().feed(encoded) == frame


@pytest.mark.parametrize(("frame", "encoded"), REQUESTS.values(), ids=REQUESTS)
def test_requests_may_arrive_byte_by_byte(frame: RequestFrame, encoded: bytes) -> None:
    decoder = RequestDecoder()
    results = [decoder.feed(encoded[at : at + 1]) for at in range(len(encoded))]
    assert results == [None] * (len(encoded) - 1) + [frame]


@pytest.mark.parametrize(("frame", "encoded"), REQUESTS.values(), ids=REQUESTS)
def test_requests_may_be_split_anywhere(frame: RequestFrame, encoded: bytes) -> None:
    for at in range(1, len(encoded)):
        decoder = RequestDecoder()
        assert decoder.feed(encoded[:at]) is None
        assert decoder.feed(encoded[at:]) == frame


@pytest.mark.parametrize(("frame", "encoded"), ANSWERS.values(), ids=ANSWERS)
def test_answers_are_these_bytes(frame: AnswerFrame, encoded: bytes) -> None:
    assert encode_answer(Response(frame.exit_code, frame.stdout), version=frame.version) == encoded
    assert decode_answer(encoded) == frame
    assert all(decode_answer(encoded[:at]) is None for at in range(len(encoded)))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(b"X", "starts with b'VNP'", id="wrong first byte"),
        pytest.param(b"VNX", "starts with b'VNP'", id="wrong third byte"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "starts with b'VNP'", id="http"),
        pytest.param(header(version=0), "no protocol version 0", id="version 0"),
        pytest.param(header(extra=4), "version 1 has 0 bytes of added", id="additional fields in version 1"),
        pytest.param(header(version=2, extra=45), "version 2 has 46 bytes of added", id="too few fields in version 2"),
        pytest.param(header(version=2, extra=47), "version 2 has 46 bytes of added", id="too many in version 2"),
        pytest.param(header(version=3, extra=45), "version 3 has 46 bytes of added", id="fewer in a later version"),
        pytest.param(header(version=9, extra=4097), "extra has 4097 bytes, the cap is 4096", id="too many fields"),
        pytest.param(header(env=ENVIRONMENT_CAP + 1), "env has 65537 bytes", id="environment"),
        pytest.param(header(stdin=STDIN_CAP + 1), "stdin has 1048577 bytes", id="stdin"),
        pytest.param(header(stdin=0xFFFFFFFF), "stdin has 4294967295 bytes", id="stdin of 4 GiB"),
        pytest.param(header() + b"more", "4 bytes follow a request of 20 bytes", id="trailing bytes"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(data: bytes, sentence: str) -> None:
    with pytest.raises(FrameError, match=sentence):
        RequestDecoder().feed(data)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(b"HTTP", "starts with b'VNP'", id="magic"),
        pytest.param(struct.pack("<3sBB3xI", b"VNP", 1, 0, ANSWER_CAP + 1), "the cap is", id="too long"),
        pytest.param(struct.pack("<3sBB3xI", b"VNP", 1, 0, 0) + b"x", "1 bytes follow", id="trailing"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_reason(data: bytes, sentence: str) -> None:
    with pytest.raises(FrameError, match=sentence):
        decode_answer(data)


def test_largest_request_passes() -> None:
    frame = RequestFrame(Command.ADD, 1, b"x" * ENVIRONMENT_CAP, b"y" * STDIN_CAP)
    assert RequestDecoder().feed(encode_request(frame)) == frame


def test_answer_that_the_shim_would_refuse_isnt_sent() -> None:
    with pytest.raises(FrameError, match="longer than the shim takes"):
        encode_answer(Response(0, b"x" * (ANSWER_CAP + 1)))


def test_request_of_a_later_version_is_read_as_ours_and_answered_in_ours() -> None:
    later = header(version=VERSION + 1, verb=2, flags=0x82, extra=52, env=16, stdin=2) + (
        bytes(46) + b"future" + b"CNI_COMMAND=DEL\0{}"
    )
    frame = RequestDecoder().feed(later)
    assert frame == RequestFrame(Command.DEL, 1000, b"CNI_COMMAND=DEL\0", b"{}", replayed=True, version=VERSION + 1)
    assert answer_version(VERSION + 1) == VERSION
    assert answer_version(1) == 1


def test_verb_that_isnt_known_is_other() -> None:
    frame = RequestDecoder().feed(header(verb=77))
    assert frame
    assert frame.verb is Command.OTHER


@pytest.mark.parametrize(
    ("environment", "variables"),
    [
        pytest.param(b"", {}, id="empty"),
        pytest.param(b"CNI_ARGS=K8S_POD_NAME=a;X=1\0", {"CNI_ARGS": "K8S_POD_NAME=a;X=1"}, id="equals sign in a value"),
        pytest.param(b"CNI_NETNS=\0", {"CNI_NETNS": ""}, id="empty value"),
        pytest.param(b"A=1\0A=2\0", {"A": "1"}, id="the first of two counts, as with getenv"),
        pytest.param(b"noequals\0\0A=1\0", {"A": "1"}, id="entries without a value are no variables"),
        pytest.param(b"CNI_ARGS=\xff\xc3\0", {"CNI_ARGS": "\udcff\udcc3"}, id="not UTF-8"),
        pytest.param(b"A=1", {"A": "1"}, id="last NUL missing"),
    ],
)
def test_environment(environment: bytes, variables: dict[str, str]) -> None:
    assert RequestFrame(Command.ADD, 0, environment, b"").variables == variables


@given(st.dictionaries(st.text(st.characters(codec="ascii", exclude_characters="=\0"), min_size=1), st.binary()))
def test_any_environment_comes_back(raw: dict[str, bytes]) -> None:
    variables = {name: value.replace(b"\0", b"").decode(errors="surrogateescape") for name, value in raw.items()}
    assert RequestFrame(Command.ADD, 0, encode_environment(variables), b"").variables == variables


@given(st.binary(max_size=64), st.lists(st.integers(1, 30), max_size=8))
def test_decoder_is_total(data: bytes, cuts: list[int]) -> None:
    """Whatever comes, in whatever pieces: a frame, nothing yet, or FrameError."""
    for prefix in (b"", b"VNP", header(), header(env=3, stdin=3)):
        decoder = RequestDecoder()
        try:
            for piece in _pieces(prefix + data, cuts):
                decoder.feed(piece)
        except FrameError:
            pass


@given(
    st.builds(
        RequestFrame,
        verb=st.sampled_from(Command),
        deadline_ms=st.integers(0, 2**32 - 1),
        environment=st.binary(max_size=300),
        stdin=st.binary(max_size=300),
        has_handles=st.booleans(),
        replayed=st.booleans(),
        version=st.integers(1, 255),
    ),
    st.lists(st.integers(1, 200), max_size=8),
)
def test_any_request_comes_back_in_any_pieces(frame: RequestFrame, cuts: list[int]) -> None:
    decoder = RequestDecoder()
    results = [decoder.feed(piece) for piece in _pieces(encode_request(frame), cuts)]
    assert results[-1] == frame
    assert results[:-1] == [None] * (len(results) - 1)


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    pieces = []
    for cut in cuts:
        if len(data) <= cut:
            break
        pieces.append(data[:cut])
        data = data[cut:]
    return [*pieces, data]
