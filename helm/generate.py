"""Makes what the chart derives from elsewhere: `python helm/generate.py [--check]`.

values.schema.json    shapes of values.yaml; the programs' configuration as their own types have it, so that a wrong
                      key is refused by `helm install` and not by a pod that won't start
README.md             the table of values, from the comments in values.yaml
files/nodeippool.yaml the definition in crds/, which a chart can't reach outside its folder (nor may it be a link: Flux
                      leaves links out of its archives)

--check changes nothing and fails when one of them is out of date; a test calls it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import msgspec.inspect as types
import yaml

from vnetpods_agent.config import Config as AgentConfig
from vnetpods_kit.config import Duration
from vnetpods_operator.config import AddressRange
from vnetpods_operator.config import Config as OperatorConfig

CHART = Path(__file__).parent / "vnetpods"
CRD = Path(__file__).parent.parent / "crds" / "nodeippool.yaml"
CUSTOM: dict[type, dict[str, Any]] = {
    Duration: {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$"},
    AddressRange: {"type": "string", "pattern": r"^[0-9./ -]+$"},
    Path: {"type": "string", "pattern": "^/"},
}
"""How types of our own are written in YAML."""

STRING: dict[str, Any] = {"type": "string"}
BOOLEAN: dict[str, Any] = {"type": "boolean"}
ANY_OBJECT: dict[str, Any] = {"type": "object"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": STRING}
OBJECTS: dict[str, Any] = {"type": "array", "items": ANY_OBJECT}
NAMED: dict[str, Any] = {
    "type": "array",
    "items": {"type": "object", "required": ["name"], "properties": {"name": STRING}},
}
FOLDER: dict[str, Any] = {"type": "string", "pattern": "^/"}
CONTAINER_SECURITY: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"seLinuxOptions": TEXTS, "seccompProfile": TEXTS, "appArmorProfile": TEXTS},
}
"""The rest of a container's security settings are what its program needs; the chart says it."""
_PODS: dict[str, dict[str, Any]] = {
    "resources": ANY_OBJECT,
    "nodeSelector": TEXTS,
    "tolerations": OBJECTS,
    "affinity": ANY_OBJECT,
    "podAnnotations": TEXTS,
    "podLabels": TEXTS,
    "extraEnv": NAMED,
    "extraVolumes": NAMED,
    "extraVolumeMounts": NAMED,
    "podSecurityContext": ANY_OBJECT,
    "securityContext": CONTAINER_SECURITY,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "image.repository": {"type": "string", "minLength": 1},
    "image.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.pullSecrets": NAMED,
    "crds.annotations": TEXTS,
    "azure.credentials.type": {"enum": ["managedIdentity", "workloadIdentity", "secret"]},
    "azure.credentials.authorityHost": {"type": "string", "pattern": "^(https?://.+)?$"},
    "k8sServicePort": {"type": "integer", "minimum": 1, "maximum": 65535},
    "operator.replicas": {"type": "integer", "minimum": 1, "maximum": 5},
    "agent.updateStrategy": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"type": {"enum": ["RollingUpdate", "OnDelete"]}, "rollingUpdate": ANY_OBJECT},
    },
    "agent.hostPaths.cniBin": FOLDER,
    "agent.hostPaths.cniConf": FOLDER,
    "podMonitor.interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
    "dashboard.labels": TEXTS,
    **{f"{component}.{key}": shape for component in ("operator", "agent") for key, shape in _PODS.items()},
}
"""Values whose shape a default doesn't tell."""


def schema_of(type_: types.Type) -> dict[str, Any]:  # noqa: C901, PLR0911 - one case per kind of type
    """The JSON schema of one of the configuration's types."""
    match type_:
        case types.StructType(fields=fields):
            return _closed({field.encode_name: schema_of(field.type) for field in fields})
        case types.CustomType(cls=cls):
            return _duration(cls) if issubclass(cls, Duration) else CUSTOM[_known(cls)]
        case types.StrType(pattern=pattern, max_length=longest):
            return _without_none({"type": "string", "pattern": pattern, "maxLength": longest})
        case types.BoolType():
            return BOOLEAN
        case types.IntType() | types.FloatType():
            kind = "integer" if isinstance(type_, types.IntType) else "number"
            bounds = {"minimum": type_.ge, "maximum": type_.le, "exclusiveMinimum": type_.gt}
            return _without_none({"type": kind, **bounds})
        case types.LiteralType(values=values):
            return {"enum": list(values)}
        case types.NoneType():
            return {"type": "null"}
        case types.UnionType(types=members):
            return {"anyOf": [schema_of(member) for member in members]}
        case types.DictType(value_type=value):
            return {"type": "object", "additionalProperties": schema_of(value)}
        case types.VarTupleType(item_type=item, max_length=longest):
            return _without_none({"type": "array", "items": schema_of(item), "maxItems": longest})
    raise NotImplementedError(f"{type_}: helm/generate.py doesn't know how this is written in YAML")


def _known(cls: type) -> type:
    return next(base for base in cls.__mro__ if base in CUSTOM)


def _duration(cls: type[Duration]) -> dict[str, Any]:
    most = None if math.isinf(cls.MOST) else cls.MOST
    return {"anyOf": [CUSTOM[Duration], _without_none({"type": "number", "minimum": cls.LEAST, "maximum": most})]}


def _without_none(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if value is not None}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def values_schema(values: dict[str, Any]) -> dict[str, Any]:
    """Every key of values.yaml, and no other."""
    configurations = {
        "operator.config": schema_of(types.type_info(OperatorConfig)),
        "agent.config": schema_of(types.type_info(AgentConfig)),
    }

    def shape(path: str, default: Any) -> dict[str, Any]:
        if found := configurations.get(path) or SPECIAL.get(path):
            return found
        match default:
            case bool():
                return BOOLEAN
            case str():
                return STRING
            case dict() if default:
                return _closed({key: shape(f"{path}.{key}", value) for key, value in default.items()})
            case dict():
                return TEXTS
        raise NotImplementedError(f"{path}: helm/generate.py's SPECIAL must say what this may be")

    properties = {key: shape(key, default) for key, default in values.items()}
    # what helm itself hands to a chart that is somebody's dependency
    properties["global"] = ANY_OBJECT
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "vnetpods", **_closed(properties)}


def documented(text: str) -> list[tuple[str, str, str]]:
    """(key, default, meaning) of every value that has a comment above it in values.yaml."""
    rows: list[tuple[str, str, str]] = []
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    values = yaml.safe_load(text)
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# "):
            comment.append(stripped[2:])
        elif match := re.match(r"^( *)([A-Za-z0-9]+):", line):
            indent = len(match[1])
            path = [*[part for part in path if part[0] < indent], (indent, match[2])]
            if comment:
                value: Any = values
                for _, part in path:
                    value = value[part]
                key = ".".join(part for _, part in path)
                rows.append((key, json.dumps(value), " ".join(comment)))
            comment = []
        else:
            comment = []
    return rows


README = """\
# vnetpods, the Helm chart

Gives every pod of a self-managed Kubernetes cluster on Azure VMs a real VNet address. Installation, with the Azure role
and the three kinds of credentials: [docs/install.md](../../docs/install.md).

```
helm install vnetpods helm/vnetpods --namespace kube-system
```

Kubernetes {kubernetes}. One release per cluster; the namespace must allow privileged pods (kube-system does).

## Values

An unknown key or a wrong type is rejected before anything is installed. The configuration files of operator and agent
go below `operator.config` ([docs/operator.md](../../docs/operator.md)) and `agent.config`
([docs/agent.md](../../docs/agent.md)).

| key | default | meaning |
|---|---|---|
{rows}

Generated by `python helm/generate.py` from values.yaml.
"""


def readme(text: str) -> str:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    rows = (f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in documented(text))
    return README.format(kubernetes=chart["kubeVersion"].removesuffix("-0"), rows="\n".join(rows))


def products() -> dict[Path, str]:
    """File → what it should hold."""
    text = (CHART / "values.yaml").read_text()
    schema = values_schema(yaml.safe_load(text))
    return {
        CHART / "values.schema.json": json.dumps(schema, indent=1) + "\n",
        CHART / "README.md": readme(text),
        CHART / "files" / "nodeippool.yaml": CRD.read_text(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when something is out of date")
    check = parser.parse_args().check
    stale = [path for path, wanted in products().items() if not path.exists() or path.read_text() != wanted]
    for path in stale:
        print(f"{path.relative_to(CHART.parent)}: {'out of date' if check else 'written'}")  # noqa: T201 - a program for a terminal
        if not check:
            path.write_text(products()[path])
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
