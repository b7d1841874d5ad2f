"""The manifest and the Python types say the same, field by field, and the manifest is one that explains itself."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from vnetpods_api import Condition, ConditionType, Interface, NodeIPPool, Reason, Sizing, Spec, Status, Usage, names

MANIFEST: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "crds" / "nodeippool.yaml").read_text())
VERSION: dict[str, Any] = MANIFEST["spec"]["versions"][0]
SCHEMA: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]["properties"]
STATUS = SCHEMA["status"]["properties"]

PAIRS: list[tuple[type[msgspec.Struct], dict[str, Any]]] = [
    (Spec, SCHEMA["spec"]),
    (Sizing, SCHEMA["spec"]["properties"]["sizing"]),
    (Status, SCHEMA["status"]),
    (Interface, STATUS["interfaces"]["items"]),
    (Usage, STATUS["usage"]),
    (Condition, STATUS["conditions"]["items"]),
]
SCALARS = {str: "string", int: "integer", bool: "boolean"}


@pytest.mark.parametrize(("type_", "schema"), PAIRS, ids=[t.__name__ for t, _ in PAIRS])
def test_types_and_manifest_agree(type_: type[msgspec.Struct], schema: dict[str, Any]) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(type_)}
    assert set(fields) == set(schema["properties"])
    hints = typing.get_type_hints(type_)
    for name, field in fields.items():
        assert schema_type(hints[field.name]) == schema["properties"][name]["type"], name
    required = {name for name, field in fields.items() if field.required}
    assert required <= set(schema.get("required", required))


def schema_type(hint: Any) -> str:
    """The manifest's word for a Python type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = [part for part in typing.get_args(hint) if part not in (types.NoneType, msgspec.UnsetType)]
    if typing.get_origin(hint) is tuple:
        return "array"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return "object"
    return SCALARS[hint]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


ALL = list(nodes(VERSION["schema"]["openAPIV3Schema"]))


def test_every_field_is_described_and_bounded() -> None:
    for path, schema in ALL:
        if path.endswith("[]") or path == ".metadata":
            continue
        assert schema.get("description"), f"{path} has no description"
        if schema["type"] == "array":
            assert "maxItems" in schema, f"{path} is unbounded"
        if schema["type"] == "integer":
            assert "minimum" in schema, f"{path} is unbounded"


def test_names() -> None:
    assert MANIFEST["metadata"]["name"] == f"{names.PLURAL}.{names.GROUP}"
    assert MANIFEST["spec"]["group"] == names.GROUP
    assert MANIFEST["spec"]["scope"] == "Cluster"
    assert (VERSION["name"], MANIFEST["spec"]["names"]["kind"]) == (names.VERSION, names.KIND)


def test_printed_columns_exist() -> None:
    columns = {column["name"]: column["jsonPath"] for column in VERSION["additionalPrinterColumns"]}
    assert list(columns)[:8] == ["Ready", "Capacity", "Allocated", "Assigned", "Free", "Waiting", "Subnet", "Age"]
    fields = {path for path, _ in ALL}
    for path in columns.values():
        if "conditions" not in path:
            assert path in fields or path == ".metadata.creationTimestamp"


def test_reasons_are_valid_and_differ() -> None:
    schema = STATUS["conditions"]["items"]["properties"]
    assert len({str(reason) for reason in Reason}) == len(Reason)
    for word in (*Reason, *ConditionType):
        assert word.isalpha()
        assert word[0].isupper()
        assert len(word) <= schema["reason"]["maxLength"]


def test_lenient_towards_newer_versions_and_strict_about_types() -> None:
    body = {"metadata": {"name": "n", "novelty": 1}, "status": {"interfaces": [], "novelty": {}}}
    assert msgspec.convert(body, NodeIPPool).metadata.name == "n"
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int.*status\.capacity"):
        msgspec.convert({"metadata": {"name": "n"}, "status": {"capacity": "many"}}, NodeIPPool)
