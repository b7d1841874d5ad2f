"""Shared parts of both programs' configuration files: durations, CIDRs, and error messages.

A message reads `file: key: value: what is expected`, with the choices if there are few.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import inspect

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_CIDR = rf"^({_OCTET}[.]){{3}}{_OCTET}/(3[0-2]|[12]?[0-9])$"
CIDR = Annotated[str, msgspec.Meta(pattern=_CIDR)]
"""A range of IPv4 addresses."""


class ConfigError(Exception):
    """The file can't be used; the message names file, key, value and what was expected."""


class Section(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A section with keys in camelCase; unknown keys are rejected."""


class Duration(float):
    """Seconds, written as `500ms`, `10s`, `5m`, `1h30m`, or as a number of seconds. A subclass sets bounds."""

    __slots__ = ()
    LEAST: ClassVar[float] = 0
    MOST: ClassVar[float] = float("inf")
    _PART: ClassVar = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
    _UNITS: ClassVar = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    _SUCH = "Expected a duration such as `30s`, `10m` or `1h30m`"

    @classmethod
    def read(cls, value: Any) -> Self:
        """Converts a value from a file. Raises ValueError."""
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{cls._SUCH}, or a number of seconds")  # noqa: TRY004 - msgspec passes on no other
        return cls._bounded(value)

    @classmethod
    def parse(cls, text: str) -> Self:
        parts = cls._PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(f"{cls._SUCH}, got `{text}`")
        return cls._bounded(sum(float(number) * cls._UNITS[unit] for number, unit in parts))

    @classmethod
    def _bounded(cls, seconds: float) -> Self:
        if not cls.LEAST <= seconds < float("inf"):
            raise ValueError(f"Expected a duration of at least {cls.LEAST:g} s")
        if seconds > cls.MOST:
            raise ValueError(f"Expected a duration of at most {cls.MOST:g} s")
        return cls(seconds)


def content(path: Path) -> Any:
    """The YAML file's content. Raises ConfigError."""
    import yaml  # noqa: PLC0415 - only where it is needed

    try:
        return yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error


_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<where>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def explain(error: msgspec.ValidationError, raw: Any, source: str, config: type, document: str) -> str:
    """The message for a validation error. `document` describes the keys of `config`; `raw` is `source`'s content."""
    found = _WHERE.match(str(error))
    assert found is not None
    what = found["what"].replace(f"`str` matching regex {_CIDR!r}", "a CIDR such as `10.0.0.0/8`")
    where = (found["where"] or "$").removeprefix("$").lstrip(".")
    if unknown := _UNKNOWN.search(what):
        key = f"{where}.{unknown['key']}".lstrip(".")
        return f"{source}: {key}: unknown key; {document} lists the known ones"
    value, kind = raw, inspect.type_info(config)
    for name, index in _STEP.findall(where):
        try:
            value = value[int(index)] if index else value[name]
        except (KeyError, IndexError, TypeError):
            return f"{source}: {where or 'the file'}: {what}"
        kind = _below(kind, name)
    if isinstance(kind, inspect.LiteralType):
        what = f"Expected one of {', '.join(f'`{choice}`' for choice in kind.values)}"
    return f"{source}: {where or 'the file'}: {value!r}: {what}"


def _below(kind: inspect.Type, name: str) -> inspect.Type:
    """The type of a field, or (without a name) of a list's items. A section that may be left out counts as one."""
    if isinstance(kind, inspect.UnionType):
        kind = next((each for each in kind.types if isinstance(each, inspect.StructType)), kind)
    if isinstance(kind, inspect.StructType):
        return next((field.type for field in kind.fields if field.encode_name == name), inspect.AnyType())
    return kind.item_type if isinstance(kind, inspect.VarTupleType) else inspect.AnyType()
