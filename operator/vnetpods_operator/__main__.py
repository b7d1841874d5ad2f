"""`vnetpods-operator --config FILE [--kubeconfig FILE]`: reads the configuration, sets up logs, runs the operator.

`vnetpods-operator nic …` is a separate command, see vnetpods_operator.nic.
Exit codes: 0 stopped by a signal · 1 failure · 2 bad arguments or configuration · 3 Lease lost.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from vnetpods_api.version import VERSION
from vnetpods_kit import logs
from vnetpods_kit.config import ConfigError
from vnetpods_operator import config as configuration

QUIET = ("azure", "kopf", "aiohttp.access", "msal")
"""Libraries whose verbose logs repeat the operator's own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The process's entry point."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["nic"]:
        from vnetpods_operator.nic import command  # noqa: PLC0415 - the SDK; --check does without

        return command.main(words[1:])
    parser = argparse.ArgumentParser(
        prog="vnetpods-operator",
        description="Gives nodes' NICs addresses for pods.",
        epilog="For one VM without a cluster: vnetpods-operator nic --help",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="configuration, see docs/operator.md"
    )
    parser.add_argument("--version", action="version", version=f"vnetpods-operator {VERSION}")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="instead of the cluster we run in")
    parser.add_argument("--check", action="store_true", help="only check the configuration")
    given = parser.parse_args(words)
    try:
        config = configuration.load(given.config)
        if given.kubeconfig is not None:
            configuration.readable(given.kubeconfig)
    except ConfigError as error:
        print(f"vnetpods-operator: {error}", file=sys.stderr)  # noqa: T201 - logs aren't set up yet
        return 2
    if given.check:
        return 0
    logs.configure(config.log_level, QUIET)
    structlog.get_logger().info("starting", version=VERSION)
    return asyncio.run(_run(given.config, given.kubeconfig, config))


async def _run(path: Path, kubeconfig: Path | None, config: configuration.Config) -> int:
    from vnetpods_operator.app import Operator  # noqa: PLC0415 - kopf and the SDK; --check does without

    try:
        await Operator(path, kubeconfig, config).run()
    except Exception:  # noqa: BLE001 - the process's edge
        structlog.get_logger().exception("the operator failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
