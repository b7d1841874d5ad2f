"""Whose is a host end: the names, indexes, groups and aliases by which we recognise what we made.

Pure. A host end says itself who owns it, in its alias: `vnetpods ADDRESS NETWORK CONTAINER/IFNAME`. That form never
changes: an older agent, after a downgrade, takes an end with any other for nobody's. What a lost ledger would leave
unknown besides, when the attachment was made and for which pod, is in an alternative name. The name alone
proves nothing: it follows from the pod's name (policy engines look for that), which a newer sandbox of the same pod
shares with the older one. So what is found under a name or an index counts as an attachment's only when the alias
says so, or, in the instants between the link's birth and its alias, when it has the MAC that follows from the
attachment's key.
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
"""Every pod's next hop. It exists nowhere; a permanent neighbour stands for it."""
DYING = 0x766E7064
"""The device group ("vnpd") of host ends that are on their way out; the kernel deletes a whole group in one go."""
SETTINGS = {
    rt.FORWARDING: 1,
    rt.RP_FILTER: 0,
    rt.PROXY_ARP: 0,
    rt.ACCEPT_REDIRECTS: 0,
    rt.SEND_REDIRECTS: 0,
    rt.ACCEPT_SOURCE_ROUTE: 0,
}
"""What a new link would inherit from net.ipv4.conf.default, which hardened hosts set as they need it for themselves. No
reverse path filter: the rule set checks sources already, and on a link without an address loose is as strict as strict.
"""
BIRTH_SETTINGS = SETTINGS | {rt.ROUTE_LOCALNET: 0}
"""portmap switches `route_localnet` on for a pod with a hostPort, so that the node itself reaches it under 127.0.0.1:
set once, and left to whoever changes it.
"""
INDEX_ATTEMPTS = 3
_ALIAS_MARK = "vnetpods"
_ALIAS_MAX = 255  # IFALIASZ - 1, include/uapi/linux/if.h
_ALTNAME = re.compile(_ALIAS_MARK + r"-(?P<created>[0-9]+[.][0-9]{3})-(?P<uid>[0-9A-Za-z-]{0,64})-[^-]+")


def alias(attachment: Attachment) -> str:
    """Raises DataPlaneError when the identifiers are too long: an end that doesn't name its owner could not be given
    back.
    """
    text = f"{_ALIAS_MARK} {attachment.address} {attachment.key.network} {attachment.key}"
    if len(text.encode()) > _ALIAS_MAX:
        said = f"network name and container id are too long together: at most {_ALIAS_MAX} bytes fit into an alias"
        raise DataPlaneError("name the owner of", str(attachment.key), errno.ENAMETOOLONG, said)
    return text


def altname(attachment: Attachment) -> str:
    """`vnetpods-CREATED-UID-IFNAME`, unique on a node; empty when the uid isn't one of Kubernetes."""
    uid = attachment.pod.uid if attachment.pod else ""
    name = f"{_ALIAS_MARK}-{attachment.created:.3f}-{uid}-{attachment.key.ifname}"
    return name if _ALTNAME.fullmatch(name) else ""


def owner(link: Link) -> tuple[AttachmentKey, Address] | None:
    """Key and address from the alias; None when it isn't one of ours."""
    words = link.alias.split(" ")
    if len(words) != 4 or words[0] != _ALIAS_MARK or "/" not in words[3]:
        return None
    container_id, _, ifname = words[3].partition("/")
    return AttachmentKey(words[2], container_id, ifname), Address(words[1])


def is_host_end(link: Link) -> bool:
    """By its kind and name one of ours, and not on its way out."""
    return link.name.startswith(HOST_PREFIX) and link.kind == "veth" and link.group != DYING


def belongs_to(link: Link, attachment: Attachment) -> bool:
    """Whether the link is this attachment's host end, alive or dying."""
    owned = owner(link)
    return owned[0] == attachment.key if owned else link.mac == attachment.host_mac


def indexes(key: AttachmentKey, attempt: int = 0) -> tuple[int, int]:
    """The interface indexes of host end and pod end: chosen by us, so that nothing has to be looked up after the
    birth.

    Thirty bits of a hash: among 250 pods two collide once in nine million nodes, then the next attempt counts. The
    two differ, since "index = peer's index" means "not paired" to the kernel (linkwatch then delays the carrier by up
    to a second).
    """
    digest = hashlib.sha1(f"{attempt} {key.network} {key}".encode(), usedforsecurity=False).digest()
    host = FIRST_INDEX | int.from_bytes(digest[:4], "big") & 0x3FFFFFFE
    return host, host | 1


def aside_name(key: AttachmentKey) -> str:
    """Where a host end goes when a newer sandbox of the same pod name needs its name: unique to the key."""
    return HOST_PREFIX + hashlib.sha1(f"aside {key.network} {key}".encode(), usedforsecurity=False).hexdigest()[:11]


def described(link: Link) -> HostInterface:
    owned = owner(link)
    if owned is None:
        return HostInterface(link.name, link.index, None, None)
    found = next(filter(None, map(_ALTNAME.fullmatch, link.altnames)), None)
    more = (float(found["created"]), found["uid"]) if found else ()
    return HostInterface(link.name, link.index, *owned, *more)
