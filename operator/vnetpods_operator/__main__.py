"""`vnetpods-operator --config FILE [--kubeconfig FILE]`: reads the configuration, sets up logs, runs the operator.

Exit codes: 0 told to stop · 1 something failed · 2 bad arguments or configuration · 3 the Lease was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from vnetpods_api.version import VERSION
from vnetpods_operator import configuration


def main(arguments: Sequence[str] | None = None) -> int:
    """The process's entry point."""
    parser = argparse.ArgumentParser(prog="vnetpods-operator", description="Gives nodes' NICs addresses for pods.")
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="configuration, see docs/operator.md"
    )
    parser.add_argument("--version", action="version", version=f"vnetpods-operator {VERSION}")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="instead of the cluster we run in")
    parser.add_argument("--check", action="store_true", help="only check the configuration")
    given = parser.parse_args(arguments)
    try:
        config = configuration.load(given.config)
        if given.kubeconfig is not None:
            configuration.readable(given.kubeconfig)
    except configuration.ConfigError as error:
        print(f"vnetpods-operator: {error}", file=sys.stderr)  # noqa: T201 - for the person who started it
        return 2
    if given.check:
        return 0
    set_up_logs(config.log_level)
    structlog.get_logger().info("starting", version=VERSION)
    return asyncio.run(_run(given.config, given.kubeconfig, config))


async def _run(path: Path, kubeconfig: Path | None, config: configuration.Config) -> int:
    from vnetpods_operator.running import Operator  # noqa: PLC0415 - kopf and the SDK; --check does without

    try:
        await Operator(path, kubeconfig, config).run()
    except Exception:  # noqa: BLE001 - the process's edge
        structlog.get_logger().exception("the operator failed")
        return 1
    return 0


def set_up_logs(level: str) -> None:
    """JSON lines on stderr, from us and from libraries."""
    chain: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*chain, structlog.processors.JSONRenderer(sort_keys=False)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        foreign_pre_chain=[*chain[:3], structlog.stdlib.add_logger_name],
    )
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # kopf says at length that each event was handled; what the operator does it says itself
    for noisy in ("azure", "kopf", "aiohttp.access", "msal"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
