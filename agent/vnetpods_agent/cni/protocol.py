"""Parses CNI calls and formats their results, for versions 0.3.0 to 1.1.0.

Pure: environment and standard input to a Call, an Attachment to a result, an error to its JSON. `commands` carries the
calls out. The rules are the CNI specification's, sections 1 (configuration), 2 (execution protocol) and 5 (result
types).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import msgspec

from vnetpods_agent.attachment import Attachment, AttachmentKey, Pod
from vnetpods_agent.cni.frames import ANSWER_CAP, Command, Request

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
GATEWAY: Final = "169.254.1.1"

SHOWN: Final = 300
"""Maximum characters of each identifier of a call in a log line."""
_QUOTED: Final = 100
_MESSAGE: Final = 1000
_DETAILS: Final = 8000
"""Maximum characters of a quoted input, of a message and of its details: for any input, the answer fits its frame and
the log line stays readable.
"""


class Code(IntEnum):
    """Error codes. Below 100: the specification's; docs/agent.md has the remedy for each."""

    VERSION = 1  # an unsupported version, or verb in that version
    ENVIRONMENT = 4
    IO = 5  # the kernel refused a step
    DECODE = 6
    CONFIG = 7
    NETNS = 8  # by convention: unusable network namespace
    TRY_AGAIN_LATER = 11  # the call is valid, try again
    UNAVAILABLE = 50  # STATUS: ADD can't be served
    LIMITED = 51  # STATUS: likewise, and running pods have limited connectivity
    UNKNOWN_ATTACHMENT = 100
    DEVIATION = 101
    INTERFACE_EXISTS = 102
    INTERNAL = 999


class CniError(Exception):
    """A verb's failure for the runtime: `message` says what failed, for which object; `details` why and what to do."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = cut(message, _MESSAGE)
        self.details = cut(details, _DETAILS)


def cut(text: str, most: int) -> str:
    """The text, or its beginning and its length. Non-UTF-8 bytes are shown escaped."""
    shown = text[:most].encode(errors="backslashreplace").decode()
    return shown if len(text) <= most else f"{shown}… ({len(text)} characters)"


def quoted(text: str) -> str:
    """A caller's input, quoted for a message."""
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}… ({len(text)} characters)"


class ValidAttachment(msgspec.Struct, rename={"container_id": "containerID"}, frozen=True):
    container_id: str
    ifname: str


_NET_CONF_KEYS: Final = {"cni_version": "cniVersion", "prev_result": "prevResult", "runtime_config": "runtimeConfig"}


class NetConf(msgspec.Struct, rename=_NET_CONF_KEYS, kw_only=True):
    """The part of a network configuration that this plugin reads; other keys are ignored.

    Raw fields are decoded only for the commands that need them.
    """

    cni_version: str | None = None
    name: str = ""
    prev_result: msgspec.Raw = msgspec.Raw(b"null")
    runtime_config: msgspec.Raw = msgspec.Raw(b"null")
    valid_attachments: msgspec.Raw = msgspec.field(name="cni.dev/valid-attachments", default=msgspec.Raw(b"null"))


class _RuntimeConfig(msgspec.Struct):
    """The data for our declared capabilities (see installer.ANNOTATIONS)."""

    annotations: dict[str, str] | None = msgspec.field(name="io.kubernetes.cri.pod-annotations", default=None)
    ips: list[str] | None = None


class _Asked(msgspec.Struct, rename={"cni_version": "cniVersion"}):
    cni_version: str = ""


class _Named(msgspec.Struct):
    name: str = ""


_NOTHING: Final = AttachmentKey("", "", "")


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed call. Fields that the verb doesn't use are empty, as is the network of a DEL that names none."""

    verb: Command
    version: str
    network: str = ""
    key: AttachmentKey = _NOTHING
    netns: str = ""
    pod: Pod | None = None
    previous: dict[str, Any] | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    ips: tuple[str, ...] = ()
    valid: frozenset[tuple[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """A verb's required input. Other input is not examined, so it may be missing or malformed."""

    environment: tuple[str, ...] = ()
    configuration: bool = True  # on standard input, with a name and a cniVersion that we speak
    previous: bool = False  # prevResult in it
    since: str = VERSIONS[0]


NEEDS: Final = {
    # Section 2, "CNI operations". GC also gets CNI_PATH, for plugins that start others.
    Command.ADD: Needs(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
    # A failing DEL keeps a pod Terminating for ever, and its answer has no version; the ledger knows the attachment.
    Command.DEL: Needs(("CNI_CONTAINERID", "CNI_IFNAME"), configuration=False),
    Command.CHECK: Needs(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), previous=True, since="0.4.0"),
    Command.GC: Needs(since="1.1.0"),
    Command.STATUS: Needs(since="1.1.0"),
    Command.VERSION: Needs(configuration=False),
}
_IDENTIFIER: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_VERSION: Final = re.compile(r"[0-9A-Za-z.+\-]{1,64}")
_IFNAME_MAX: Final = 15  # IFNAMSIZ - 1
_PATH_MAX: Final = 4095
_POD_NAME_MAX: Final = 253  # Kubernetes' limit for any object's name
_OURS_MAX: Final = 32 * 1024  # `result` adds at most this to prevResult; a path's byte may take six characters in JSON


def parse(request: Request) -> Call:
    """Raises CniError."""
    verb, env = request.verb, request.env
    needs = NEEDS.get(verb)
    if needs is None:
        raise CniError(Code.ENVIRONMENT, f"CNI_COMMAND: {quoted(env.get('CNI_COMMAND', ''))} is no verb of CNI")
    conf = configuration(verb, request.stdin) if needs.configuration else NetConf(name=named(request.stdin))
    version = conf.cni_version or asked_version(request.stdin)
    if missing := [name for name in needs.environment if not env.get(name)]:
        raise CniError(Code.ENVIRONMENT, f"{verb.name} needs {', '.join(missing)}", "set by the container runtime")
    if not needs.environment:
        return Call(verb, version, conf.name, valid=_valid(conf) if verb is Command.GC else None)
    _check_environment(env)
    previous = _previous(verb, conf) if verb in (Command.ADD, Command.CHECK) else None
    if needs.previous and previous is None:
        raise CniError(Code.CONFIG, f"{verb.name} needs prevResult")
    runtime = _runtime(conf) if verb is Command.ADD else _RuntimeConfig()
    pairs = arguments(env.get("CNI_ARGS", ""))
    return Call(
        verb,
        version,
        conf.name,
        AttachmentKey(conf.name, env["CNI_CONTAINERID"], env["CNI_IFNAME"]),
        netns=_path(env["CNI_NETNS"]) if "CNI_NETNS" in needs.environment else "",
        pod=_pod(verb, pairs),
        previous=previous,
        # a runtime without the capability passes the same in CNI_ARGS (CNI's CONVENTIONS.md: `ips`, IP)
        annotations=pairs if runtime.annotations is None else runtime.annotations,
        ips=tuple(runtime.ips or ([pairs["IP"]] if "IP" in pairs else ())),
    )


def configuration(verb: Command, stdin: bytes) -> NetConf:
    """The network configuration, with a supported version and a valid name. Raises CniError."""
    try:
        conf = msgspec.json.decode(stdin, type=NetConf)
    except msgspec.ValidationError as error:
        raise CniError(Code.CONFIG, f"network configuration: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CniError(Code.DECODE, f"standard input is no network configuration: {error}") from error
    _check_version(verb, conf.cni_version)
    if not _IDENTIFIER.fullmatch(conf.name):
        rule = f"it must match {_IDENTIFIER.pattern}"
        raise CniError(Code.CONFIG, f"name: {quoted(conf.name)} is no network name", rule)
    return conf


def named(stdin: bytes) -> str:
    """The network's name, from arbitrary standard input; empty when it has none."""
    try:
        name = msgspec.json.decode(stdin, type=_Named).name
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return name if _IDENTIFIER.fullmatch(name) else ""


def _check_version(verb: Command, version: str | None) -> None:
    if version not in VERSIONS:
        said = f"cniVersion {quoted(version)} is not supported" if version else "the configuration gives no cniVersion"
        raise CniError(Code.VERSION, said, f"supported are {', '.join(VERSIONS)}")
    if VERSIONS.index(version) < VERSIONS.index(since := NEEDS[verb].since):
        raise CniError(Code.VERSION, f"{verb.name} exists since CNI {since}, the configuration says {version}")


def _check_environment(env: dict[str, str]) -> None:
    if not _IDENTIFIER.fullmatch(container_id := env["CNI_CONTAINERID"]):
        raise CniError(Code.ENVIRONMENT, f"CNI_CONTAINERID: {quoted(container_id)} must match {_IDENTIFIER.pattern}")
    ifname = env["CNI_IFNAME"]
    size = len(ifname.encode(errors="surrogateescape"))
    # the kernel treats "eth%d" as a pattern, and generates a name from it
    if size > _IFNAME_MAX or ifname in {".", ".."} or not ifname.isprintable() or re.search(r"[/:%\s]", ifname):
        rule = f"at most {_IFNAME_MAX} bytes, none of them '/', ':', '%' or white space"
        raise CniError(Code.ENVIRONMENT, f"CNI_IFNAME: {quoted(ifname)} is no interface name", rule)


def _text(name: str, value: str) -> str:
    """Raises unless the value, which answers repeat, is UTF-8; other bytes arrive as surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CniError(Code.ENVIRONMENT, f"{name}: {quoted(value)} is not UTF-8") from None
    return value


def _path(netns: str) -> str:
    if len(_text("CNI_NETNS", netns).encode()) > _PATH_MAX:
        raise CniError(Code.ENVIRONMENT, f"CNI_NETNS: {quoted(netns)} is longer than a path can be")
    return netns


def arguments(args: str) -> dict[str, str]:
    """The pairs in CNI_ARGS; a value may contain '='."""
    return dict(pair.split("=", 1) for pair in args.split(";") if "=" in pair)


def _runtime(conf: NetConf) -> _RuntimeConfig:
    try:
        return msgspec.json.decode(conf.runtime_config, type=_RuntimeConfig | None) or _RuntimeConfig()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CniError(Code.CONFIG, f"runtimeConfig: {error}") from error


def _pod(verb: Command, pairs: Mapping[str, str]) -> Pod | None:
    """The pod in CNI_ARGS, as the kubelet's runtime passes it. Unknown keys and pairs without '=' are ignored, as with
    IgnoreUnknown; names too long for Kubernetes are treated as no pod.
    """
    namespace, name, uid = (pairs.get(f"K8S_POD_{key}", "") for key in ("NAMESPACE", "NAME", "UID"))
    if not namespace or not name or max(map(len, (namespace, name, uid))) > _POD_NAME_MAX:
        return None
    try:
        return Pod(*(_text("CNI_ARGS", value) for value in (namespace, name, uid)))
    except CniError:
        if verb is Command.ADD:
            raise
        return None  # a name must not block a deletion


def _previous(verb: Command, conf: NetConf) -> dict[str, Any] | None:
    """Parses prevResult. ADD passes it on, so an invalid one is refused before anything is done."""
    try:
        previous: dict[str, Any] | None = msgspec.json.decode(conf.prev_result, type=dict[str, Any] | None)
        for part in ("interfaces", "ips", "routes"):
            msgspec.convert((previous or {}).get(part), list[dict[str, Any]] | None)
        size = len(msgspec.json.encode(previous)) if verb is Command.ADD else 0
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CniError(Code.CONFIG, f"prevResult: {error}") from error
    if size > ANSWER_CAP - _OURS_MAX:
        raise CniError(Code.CONFIG, f"prevResult: {size} bytes are more than can be passed on")
    return previous


def _valid(conf: NetConf) -> frozenset[tuple[str, str]] | None:
    """The GC's list; None without one, which differs from an empty list."""
    try:
        listed = msgspec.json.decode(conf.valid_attachments, type=list[ValidAttachment] | None)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CniError(Code.CONFIG, f"cni.dev/valid-attachments: {error}") from error
    return None if listed is None else frozenset((valid.container_id, valid.ifname) for valid in listed)


# answers


def result(call: Call, attachment: Attachment) -> bytes:
    """The attachment, appended to the results of earlier plugins of the chain."""
    new = call.version.startswith("1.")
    mtu = {"mtu": attachment.mtu} if call.version == "1.1.0" and attachment.mtu else {}
    made = dict(call.previous or {})
    interfaces = list(made.get("interfaces") or [])
    interfaces += [
        {"name": attachment.host_ifname, "mac": attachment.host_mac} | mtu,
        {"name": attachment.key.ifname, "mac": attachment.pod_mac} | mtu | {"sandbox": call.netns},
    ]
    ip: dict[str, Any] = {} if new else {"version": "4"}
    ip |= {"interface": len(interfaces) - 1, "address": f"{attachment.address}/32", "gateway": GATEWAY}
    made |= {
        "cniVersion": call.version,
        "interfaces": interfaces,
        "ips": [*(made.get("ips") or []), ip],
        "routes": [*(made.get("routes") or []), {"dst": "0.0.0.0/0", "gw": GATEWAY}],
        "dns": made.get("dns") or {},
    }
    return msgspec.json.encode(made)


def contradictions(previous: dict[str, Any], netns: str, attachment: Attachment) -> Iterator[str]:
    """Where prevResult lacks or contradicts our `result`, as sentences (section 2, CHECK).

    Additions by other plugins of the chain, routes that they removed and values that they omitted are accepted. The
    data plane checks the kernel.
    """
    interfaces: list[dict[str, Any]] = previous.get("interfaces") or []
    name, host_name = attachment.key.ifname, attachment.host_ifname
    inside = [at for at, found in enumerate(interfaces) if found.get("sandbox") and found.get("name") == name]
    if not inside:
        yield f"prevResult lacks the pod's {name}"
    for found in (interfaces[at] for at in inside):
        yield from _unlike(f"the pod's {name}", found, {"sandbox": netns, "mac": attachment.pod_mac}, attachment.mtu)
    outside = [found for found in interfaces if not found.get("sandbox") and found.get("name") == host_name]
    if not outside:
        yield f"prevResult lacks the host's {host_name}"
    for found in outside:
        yield from _unlike(f"the host's {host_name}", found, {"mac": attachment.host_mac}, attachment.mtu)
    ours = [ip for ip in previous.get("ips") or [] if str(ip.get("address")).split("/")[0] == attachment.address]
    if not ours:
        yield f"prevResult lacks {attachment.address}, which the ledger has for it"
    for found in ours:
        expected = {"address": f"{attachment.address}/32", "gateway": GATEWAY}
        yield from _unlike(attachment.address, found, expected)
        if (at := found.get("interface")) is not None and inside and at not in inside:
            yield f"prevResult has {attachment.address} on interface {quoted(str(at))} instead of {inside[0]}"


def _unlike(what: str, found: dict[str, Any], expected: dict[str, str], mtu: int = 0) -> Iterator[str]:
    for key, value in expected.items():
        if (said := str(found.get(key) or value)).lower() != value.lower():
            yield f"prevResult has {what} with {key} {quoted(said)} instead of {value}"
    size = found.get("mtu")
    if mtu and isinstance(size, int) and size > mtu:  # another plugin may have set a smaller one
        yield f"prevResult has {what} with mtu {size} instead of {mtu}"


def versions(asked: str) -> bytes:
    """VERSION's answer, in the request's version."""
    return msgspec.json.encode({"cniVersion": asked, "supportedVersions": VERSIONS})


def error_body(error: CniError, version: str) -> bytes:
    body = {
        "cniVersion": version if version in VERSIONS else VERSIONS[-1],
        "code": int(error.code),
        "msg": error.message,
    }
    return msgspec.json.encode(body | ({"details": error.details} if error.details else {}))


def asked_version(stdin: bytes) -> str:
    """The version to answer in, from arbitrary standard input; our newest when it has none."""
    try:
        version = msgspec.json.decode(stdin, type=_Asked).cni_version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        version = ""
    return version if _VERSION.fullmatch(version) else VERSIONS[-1]
