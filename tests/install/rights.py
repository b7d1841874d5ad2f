"""What our two ServiceAccounts may do, what they did, and what happens when one right is taken away.

A right is one verb on one resource, in one namespace or in all: the finest that RBAC knows. Rights in the cluster
are read from the Roles that are bound to the accounts; what was done from the API server's audit log.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.install.world import ACCOUNTS, NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.kube.api import Api

FORBIDDEN = 403


class Right(NamedTuple):
    """`namespace` is empty for a right that holds in all; `resource` may name a subresource."""

    account: str
    verb: str
    group: str
    resource: str
    namespace: str


RARE = {
    Right("vnetpods-agent", "get", "coordination.k8s.io", "leases", NAMESPACE): "pods that wait for half a minute",
    Right("vnetpods-operator", "patch", "events.k8s.io", "events", "default"): "a problem that lasts ten minutes",
}
"""Rights whose use takes longer than a test, and what it takes."""


def bound(api: Api) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(account, namespace or "", role) of everything that is bound to one of ours."""
    for kind in ("clusterrolebindings", "rolebindings"):
        for binding in api.get(kind, "-A")["items"]:
            for subject in binding.get("subjects", []):
                if (subject["kind"], subject.get("namespace")) != ("ServiceAccount", NAMESPACE):
                    continue
                if subject["name"] in ACCOUNTS:
                    namespace = binding["metadata"].get("namespace", "")
                    name = binding["roleRef"]["name"]
                    where = ["-n", namespace] if namespace else []
                    yield subject["name"], namespace, api.get(binding["roleRef"]["kind"], name, *where)


def granted(api: Api) -> set[Right]:
    return {
        Right(account, verb, group, resource, namespace)
        for account, namespace, role in bound(api)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(events: Iterable[Any]) -> tuple[set[Right], set[str]]:
    """The rights that served requests took, and the requests that were refused, in words."""
    taken: set[Right] = set()
    denied: set[str] = set()
    for event in events:
        reference = event.get("objectRef")
        if not reference or "resource" not in reference:
            continue  # discovery, open to every account
        account = event["user"]["username"].rpartition(":")[2]
        resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        group, namespace = reference.get("apiGroup", ""), reference.get("namespace", "")
        if event.get("responseStatus", {}).get("code") == FORBIDDEN:
            denied.add(f"{account}: {event['verb']} {group}/{resource}: {event['responseStatus'].get('message')}")
            continue
        if (account, resource) == ("vnetpods-agent", "events"):
            namespace = ""  # of whatever pod it is about
        if event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201:
            taken.add(Right(account, "create", group, resource, namespace))  # an apply of what wasn't there
        taken.add(Right(account, event["verb"], group, resource, namespace))
    return taken, denied


def allowed(api: Api, right: Right) -> bool:
    """What the API server's own authorizer says."""
    resource, _, subresource = right.resource.partition("/")
    command = ["auth", "can-i", right.verb, f"{resource}.{right.group}" if right.group else resource]
    command += [f"--subresource={subresource}"] if subresource else []
    command += ["-n", right.namespace] if right.namespace else ["-A"]
    who = f"--as=system:serviceaccount:{NAMESPACE}:{right.account}"
    name = [] if right.resource != "leases" or right.verb == "create" else ["vnetpods-operator"]
    if name:
        command[3] += f"/{name[0]}"
    full = [str(api.kubectl_program), f"--kubeconfig={api.admin_kubeconfig}", *command, who]
    return subprocess.run(full, capture_output=True, text=True, check=False).stdout.strip() == "yes"


def refused(api: Api, right: Right) -> bool:
    return not allowed(api, right)


@contextlib.contextmanager
def withdrawn(api: Api, right: Right) -> Iterator[None]:
    """Takes one right out of the role that grants it; puts the role back afterwards."""
    for account, namespace, role in bound(api):
        if (account, namespace) != (right.account, right.namespace):
            continue
        rules = [_without(rule, right) for rule in role["rules"]]
        if rules == role["rules"]:
            continue
        where = ["-n", namespace] if namespace else []
        patch = ["patch", role["kind"], role["metadata"]["name"], *where, "--type=merge", "-p"]
        api.kubectl(*patch, json.dumps({"rules": [rule for rule in rules if rule["verbs"]]}))
        try:
            yield
        finally:
            api.kubectl(*patch, json.dumps({"rules": role["rules"]}))
        return
    raise AssertionError(f"no role grants {right}")


def _without(rule: dict[str, Any], right: Right) -> dict[str, Any]:
    if right.group in rule["apiGroups"] and right.resource in rule["resources"]:
        return rule | {"verbs": [verb for verb in rule["verbs"] if verb != right.verb]}
    return rule
