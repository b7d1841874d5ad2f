"""Identifies host ends and their owners: the names, indexes, groups and aliases of the links that we create.

Pure. A host end names its owner in its alias: `vnetpods ADDRESS NETWORK CONTAINER/IFNAME`. That form never changes:
after a downgrade, an older agent treats an end with any other form as without owner. An alternative name holds what
else would be lost with the ledger: the attachment's time and pod. The name alone proves nothing: it is derived from the
pod's name (policy engines look for that), which a newer sandbox of the same pod shares with the older one. So a link
found by name or index counts as an attachment's only if its alias matches or, in the instants between its creation and
its alias, if its MAC is the one derived from the attachment's key.
"""

from __future__ import annotations

import errno
import hashlib
import re

from vnetpods_agent.attachment import HOST_PREFIX, Address, Attachment, AttachmentKey
from vnetpods_agent.dataplane import DataPlaneError, HostInterface
from vnetpods_agent.dataplane.names import FIRST_INDEX
from vnetpods_agent.dataplane.netlink import messages as rt
from vnetpods_agent.dataplane.netlink.messages import Link

GATEWAY = "169.254.1.1"
"""Every pod's next hop. It exists only as a permanent neighbour entry."""
DYING = 0x766E7064
"""The device group ("vnpd") of host ends to delete; the kernel deletes a whole group in one operation."""
SETTINGS = {
    rt.FORWARDING: 1,
    rt.RP_FILTER: 0,
    rt.PROXY_ARP: 0,
    rt.ACCEPT_REDIRECTS: 0,
    rt.SEND_REDIRECTS: 0,
    rt.ACCEPT_SOURCE_ROUTE: 0,
}
"""Settings that a new link would otherwise inherit from net.ipv4.conf.default, which hardened hosts adapt to their own
needs. No reverse path filter: the rule set already checks sources, and on a link without an address loose mode is as
strict as strict mode.
"""
BIRTH_SETTINGS = SETTINGS | {rt.ROUTE_LOCALNET: 0}
"""portmap enables `route_localnet` for a pod with a hostPort, so that the node itself reaches it at 127.0.0.1: it is
set at creation only, and later changes are left alone.
"""
INDEX_ATTEMPTS = 3
_ALIAS_MARK = "vnetpods"
_ALIAS_MAX = 255  # IFALIASZ - 1, include/uapi/linux/if.h
_ALTNAME = re.compile(_ALIAS_MARK + r"-(?P<created>[0-9]+[.][0-9]{3})-(?P<uid>[0-9A-Za-z-]{0,64})-[^-]+")


def alias(attachment: Attachment) -> str:
    """Raises DataPlaneError if the identifiers are too long: an end that doesn't name its owner can't be released."""
    text = f"{_ALIAS_MARK} {attachment.address} {attachment.key.network} {attachment.key}"
    if len(text.encode()) > _ALIAS_MAX:
        said = f"network name and container id are too long together: at most {_ALIAS_MAX} bytes fit into an alias"
        raise DataPlaneError("name the owner of", str(attachment.key), errno.ENAMETOOLONG, said)
    return text


def altname(attachment: Attachment) -> str:
    """`vnetpods-CREATED-UID-IFNAME`, unique on a node; empty for a uid that Kubernetes can't have issued."""
    uid = attachment.pod.uid if attachment.pod else ""
    name = f"{_ALIAS_MARK}-{attachment.created:.3f}-{uid}-{attachment.key.ifname}"
    return name if _ALTNAME.fullmatch(name) else ""


def owner(link: Link) -> tuple[AttachmentKey, Address] | None:
    """Key and address from the alias; None if it isn't ours."""
    words = link.alias.split(" ")
    if len(words) != 4 or words[0] != _ALIAS_MARK or "/" not in words[3]:
        return None
    container_id, _, ifname = words[3].partition("/")
    return AttachmentKey(words[2], container_id, ifname), Address(words[1])


def is_host_end(link: Link) -> bool:
    """Whether it is ours by kind and name, and not dying."""
    return link.name.startswith(HOST_PREFIX) and link.kind == "veth" and link.group != DYING


def belongs_to(link: Link, attachment: Attachment) -> bool:
    """Whether the link is this attachment's host end, alive or dying."""
    owned = owner(link)
    return owned[0] == attachment.key if owned else link.mac == attachment.host_mac


def indexes(key: AttachmentKey, attempt: int = 0) -> tuple[int, int]:
    """The interface indexes of host end and pod end: chosen by us, so that no lookup is needed after creation.

    29 bits of a hash: two of 250 pods collide on one node in 17,000; then the next attempt is used. The two indexes
    differ, since to the kernel "index = peer's index" means "not paired" (linkwatch then delays the carrier by
    up to a second).
    """
    digest = hashlib.sha1(f"{attempt} {key.network} {key}".encode(), usedforsecurity=False).digest()
    host = FIRST_INDEX | int.from_bytes(digest[:4], "big") & 0x3FFFFFFE
    return host, host | 1


def aside_name(key: AttachmentKey) -> str:
    """A host end's new name when a newer sandbox of the same pod name needs its name; unique to the key."""
    return HOST_PREFIX + hashlib.sha1(f"aside {key.network} {key}".encode(), usedforsecurity=False).hexdigest()[:11]


def described(link: Link) -> HostInterface:
    owned = owner(link)
    if owned is None:
        return HostInterface(link.name, link.index, None, None)
    found = next(filter(None, map(_ALTNAME.fullmatch, link.altnames)), None)
    more = (float(found["created"]), found["uid"]) if found else ()
    return HostInterface(link.name, link.index, *owned, *more)
