"""Logs: one JSON object per line on standard error, one line per finished action."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import msgspec
import structlog
from structlog.tracebacks import ExceptionDictTransformer


def configure(level: str) -> None:
    """Before anything is logged."""
    encoder = msgspec.json.Encoder(enc_hook=str)

    def render(_: Any, __: str, event: MutableMapping[str, Any]) -> bytes:
        return encoder.encode(event)

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # without the values of local variables: among them are tokens
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.BytesLoggerFactory(file=sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )
