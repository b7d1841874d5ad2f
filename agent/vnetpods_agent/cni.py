"""CNI as bytes: what the runtime says and what it wants to hear, for versions 0.3.0 to 1.1.0.

Pure: environment and standard input to a Call, an Attachment to a result, an error to its JSON. What a verb does is in
`verbs`. The rules are the CNI specification's, sections 1 (configuration), 2 (execution protocol) and 5 (result types).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import msgspec

from vnetpods_agent.attachment import Attachment, AttachmentKey, Pod
from vnetpods_agent.wire import Request, Verb

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
GATEWAY: Final = "169.254.1.1"


class Code(IntEnum):
    """What went wrong. Below 100: the specification's; see docs/agent.md for what to do about each."""

    VERSION = 1  # a version, or a verb in that version, that isn't ours
    ENVIRONMENT = 4
    IO = 5  # the kernel refused
    DECODE = 6
    CONFIG = 7
    NETNS = 8  # by convention: the network namespace can't be used
    LATER = 11  # nothing is wrong with the call, try again
    UNAVAILABLE = 50  # STATUS: ADD can't be served
    UNKNOWN_ATTACHMENT = 100
    DEVIATION = 101
    INTERFACE_EXISTS = 102
    INTERNAL = 999


class CniError(Exception):
    """A verb's failure as the runtime sees it: `message` says what, to which object; `details` why and what to do."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class ValidAttachment(msgspec.Struct, rename={"container_id": "containerID"}, frozen=True):
    container_id: str
    ifname: str


class NetConf(msgspec.Struct, rename={"cni_version": "cniVersion", "prev_result": "prevResult"}, kw_only=True):
    """The part of a network configuration that concerns us. The rest, runtimeConfig included, is somebody else's."""

    cni_version: str = "0.1.0"  # what libcni takes a missing one for
    name: str = ""
    prev_result: msgspec.Raw = msgspec.Raw(b"null")  # not decoded with the rest: a DEL must not fail for it
    valid_attachments: list[ValidAttachment] | None = msgspec.field(name="cni.dev/valid-attachments", default=None)


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was understood."""

    verb: Verb
    version: str
    network: str
    key: AttachmentKey
    netns: str
    pod: Pod | None
    previous: dict[str, Any] | None
    valid: frozenset[tuple[str, str]] | None


_NEEDED: Final = {
    # section 2, "Parameters" of each operation; DEL may come without a namespace, GC and STATUS without a container
    Verb.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Verb.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Verb.DEL: ("CNI_CONTAINERID", "CNI_IFNAME"),
}
_SINCE: Final = {Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0"}
_IDENTIFIER: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_IFNAME_MAX: Final = 15  # IFNAMSIZ - 1


def understand(request: Request) -> Call:
    """Raises CniError."""
    verb = request.verb
    if verb is Verb.OTHER:
        raise CniError(Code.ENVIRONMENT, f"CNI_COMMAND: {request.env.get('CNI_COMMAND')!r} is no verb of CNI")
    conf = configuration(request.stdin)
    if verb is not Verb.VERSION:
        _check_version(verb, conf.cni_version)
        if not _IDENTIFIER.fullmatch(conf.name):
            raise CniError(
                Code.CONFIG, f"name: {conf.name!r} is no network name", "it must match " + _IDENTIFIER.pattern
            )
    env = request.env
    if missing := [name for name in _NEEDED.get(verb, ()) if not env.get(name)]:
        raise CniError(Code.ENVIRONMENT, f"{verb.name} needs {', '.join(missing)}", "set by the container runtime")
    if verb in _NEEDED:
        _check_environment(env)
    return Call(
        verb=verb,
        version=conf.cni_version,
        network=conf.name,
        key=AttachmentKey(conf.name, env.get("CNI_CONTAINERID", ""), env.get("CNI_IFNAME", "")),
        netns=_text("CNI_NETNS", env.get("CNI_NETNS", "")) if verb is not Verb.DEL else "",
        pod=_pod(verb, env.get("CNI_ARGS", "")),
        previous=_previous(conf) if verb in (Verb.ADD, Verb.CHECK) else None,
        valid=None
        if conf.valid_attachments is None
        else frozenset((valid.container_id, valid.ifname) for valid in conf.valid_attachments),
    )


def configuration(stdin: bytes) -> NetConf:
    try:
        return msgspec.json.decode(stdin, type=NetConf)
    except msgspec.ValidationError as error:
        raise CniError(Code.CONFIG, f"network configuration: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CniError(Code.DECODE, f"standard input is no network configuration: {error}") from error


def _check_version(verb: Verb, version: str) -> None:
    if version not in VERSIONS:
        raise CniError(Code.VERSION, f"cniVersion {version!r} is not supported", f"supported are {', '.join(VERSIONS)}")
    if (since := _SINCE.get(verb)) and VERSIONS.index(version) < VERSIONS.index(since):
        raise CniError(Code.VERSION, f"{verb.name} exists since CNI {since}, the configuration says {version}")


def _check_environment(env: dict[str, str]) -> None:
    if not _IDENTIFIER.fullmatch(container_id := env["CNI_CONTAINERID"]):
        raise CniError(Code.ENVIRONMENT, f"CNI_CONTAINERID: {container_id!r} must match {_IDENTIFIER.pattern}")
    ifname = env["CNI_IFNAME"]
    size = len(ifname.encode(errors="surrogateescape"))
    if size > _IFNAME_MAX or ifname in {".", ".."} or not ifname.isprintable() or re.search(r"[/:\s]", ifname):
        rule = f"at most {_IFNAME_MAX} bytes, none of them '/', ':' or white space"
        raise CniError(Code.ENVIRONMENT, f"CNI_IFNAME: {ifname!r} is no interface name", rule)


def _text(name: str, value: str) -> str:
    """Values that are repeated in answers must be text; bytes that aren't arrive as surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CniError(Code.ENVIRONMENT, f"{name}: {value!r} is not UTF-8") from None
    return value


def _pod(verb: Verb, args: str) -> Pod | None:
    """The pod that the kubelet's runtime names; unknown keys and pairs without '=' are nobody's harm (as with
    IgnoreUnknown).
    """
    pairs = dict(pair.split("=", 1) for pair in args.split(";") if "=" in pair)
    namespace, name = pairs.get("K8S_POD_NAMESPACE", ""), pairs.get("K8S_POD_NAME", "")
    if not namespace or not name:
        return None
    try:
        return Pod(
            _text("CNI_ARGS", namespace), _text("CNI_ARGS", name), _text("CNI_ARGS", pairs.get("K8S_POD_UID", ""))
        )
    except CniError:
        if verb is Verb.ADD:
            raise
        return None  # a deletion is not held up by a name


def _previous(conf: NetConf) -> dict[str, Any] | None:
    try:
        previous: dict[str, Any] | None = msgspec.json.decode(conf.prev_result, type=dict[str, Any] | None)
        for part in ("interfaces", "ips", "routes"):
            msgspec.convert((previous or {}).get(part), list[dict[str, Any]] | None)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CniError(Code.CONFIG, f"prevResult: {error}") from error
    return previous


# answers


def result(call: Call, attachment: Attachment) -> bytes:
    """The attachment, behind whatever an earlier plugin of the chain has made."""
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


def claims(previous: dict[str, Any]) -> set[str]:
    """The addresses, without prefix length, that a result says the pod has."""
    return {str(ip.get("address", "")).partition("/")[0] for ip in previous.get("ips") or []}


def versions(asked: str) -> bytes:
    """VERSION answers in whatever version it was asked in."""
    return msgspec.json.encode({"cniVersion": asked, "supportedVersions": VERSIONS})


def error_body(error: CniError, version: str) -> bytes:
    body = {
        "cniVersion": version if version in VERSIONS else VERSIONS[-1],
        "code": int(error.code),
        "msg": error.message,
    }
    return msgspec.json.encode(body | ({"details": error.details} if error.details else {}))


def asked_version(stdin: bytes) -> str:
    """The version to answer an error in, from a configuration that may be anything."""
    try:
        return configuration(stdin).cni_version
    except CniError:
        return VERSIONS[-1]
