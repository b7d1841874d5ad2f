"""Logs: one JSON object per line on standard error, one line per finished action."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any

import msgspec
import structlog
from structlog.tracebacks import ExceptionDictTransformer

_ENCODER = msgspec.json.Encoder(enc_hook=str)


def configure(level: str, quiet: Sequence[str] | None = None) -> None:
    """Call it before logging. With `quiet`, libraries' logs take the same form, those named in it from WARNING on."""
    chain: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # without the values of local variables: they may hold tokens
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
    ]
    structlog.configure(
        processors=[*chain, _line],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.BytesLoggerFactory(file=sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )
    if quiet is not None:
        _libraries(level, chain, quiet)


def _libraries(level: str, chain: list[Any], quiet: Sequence[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    processors: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, _text]
    before = [*chain, structlog.stdlib.add_logger_name]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=processors, foreign_pre_chain=before))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)


def _line(_: Any, __: str, event: MutableMapping[str, Any]) -> bytes:
    return _ENCODER.encode(event)


def _text(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return _ENCODER.encode(event).decode()
