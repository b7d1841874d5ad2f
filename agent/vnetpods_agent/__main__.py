"""vnetpods-agent: the agent of one node.

run        serves the node's container runtime until SIGTERM
install    installs the shim (`run` installs the conflist, once an address is known)
uninstall  removes conflist and shim, and rules and routes unless pods still need them
setup      makes a VM without Kubernetes run the agent: configuration and systemd unit
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from vnetpods_agent.config import Config, load
from vnetpods_api.version import VERSION
from vnetpods_kit import logs
from vnetpods_kit.config import ConfigError

_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "vnetpods-agent", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"vnetpods-agent {VERSION}")
    parser.add_argument("command", choices=["run", "install", "uninstall", "setup"])
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="see docs/agent.md; setup: /etc/vnetpods/agent.yaml"
    )
    of_setup = parser.add_argument_group("setup")
    of_setup.add_argument("--shim", type=Path, metavar="FILE", help="the CNI plugin to install, for Podman and others")
    of_setup.add_argument("--check", action="store_true", help="only say what differs; exit code 1 if anything does")
    of_setup.add_argument("--remove", action="store_true", help="stop the service and delete its unit")
    options = parser.parse_args(arguments)
    if options.command == "setup":
        return _setup(options)
    if options.config is None:
        parser.error("--config is required")
    try:
        config = load(options.config)
    except ConfigError as error:
        print(f"vnetpods-agent: {error}", file=sys.stderr)  # noqa: T201 - for the caller
        return _USAGE_ERROR
    logs.configure(config.log_level)
    return {"run": _run, "install": _install, "uninstall": _uninstall}[options.command](config)


def _setup(options: argparse.Namespace) -> int:
    from vnetpods_agent import setup  # noqa: PLC0415 - only where it is needed

    program, config = Path(sys.argv[0]).absolute(), (options.config or setup.CONFIG).absolute()
    here = setup.Setup(setup.Machine(), program, config, options.shim and options.shim.absolute())
    try:
        said = here.check() if options.check else here.remove() if options.remove else here.apply()
    except setup.SetupError as error:
        print(f"vnetpods-agent: {error}", file=sys.stderr)  # noqa: T201 - for whoever started it
        return 1
    for line in said:
        print(line)  # noqa: T201 - for whoever started it
    return int(options.check and bool(said))


def _run(config: Config) -> int:
    from vnetpods_agent.app import Agent  # noqa: PLC0415 - only where it is needed
    from vnetpods_agent.kube import AccessError  # noqa: PLC0415 - only where it is needed

    async def live() -> None:
        await Agent(config).run()

    try:
        asyncio.run(live())
    except AccessError as error:
        print(f"vnetpods-agent: {error}", file=sys.stderr)  # noqa: T201 - for the caller
        return _USAGE_ERROR
    return 0


def _install(config: Config) -> int:
    from vnetpods_agent import installer  # noqa: PLC0415 - only where it is needed

    if config.paths.shim is None:
        print("vnetpods-agent: paths.shim is not set: there is nothing to install", file=sys.stderr)  # noqa: T201 - for the caller
        return _USAGE_ERROR
    try:
        installer.install_shim(config.paths.shim, config.paths.cni_bin)
    except installer.InstallError as error:
        print(f"vnetpods-agent: {error}", file=sys.stderr)  # noqa: T201 - for the caller
        return 1
    return 0


def _uninstall(config: Config) -> int:
    from vnetpods_agent.app import uninstall  # noqa: PLC0415 - only where it is needed

    for remark in uninstall(config):
        print(remark)  # noqa: T201 - for the caller
    return 0


if __name__ == "__main__":
    sys.exit(main())
