"""The command's arguments, its connection to Azure, and its exit codes.

0 the order is met, or would be (dry run) · 1 it is not, standard error says why · 2 bad arguments or configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec

from vnetpods_kit import logs
from vnetpods_kit.config import ConfigError
from vnetpods_operator import azure, proxies
from vnetpods_operator import config as configuration
from vnetpods_operator.azure.budget import Budget, Kind, rates
from vnetpods_operator.config import Config
from vnetpods_operator.errors import AzureError
from vnetpods_operator.nic import report
from vnetpods_operator.nic.filling import Filling
from vnetpods_operator.nic.order import Order, picked
from vnetpods_operator.nic.report import Card, Result
from vnetpods_operator.planning.machine import ENTRIES_PER_NIC, MachineId, UnsupportedProvider
from vnetpods_operator.planning.model import Problem
from vnetpods_operator.planning.subnets import Subnets
from vnetpods_operator.reconcile.backoff import problem_of
from vnetpods_operator.reconcile.writing import Writer

PROGRAM = "vnetpods-operator nic"


def main(arguments: Sequence[str]) -> int:
    """Runs the command with the arguments after `nic`; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        machine = MachineId.from_provider_id("azure://" + given.machine.removeprefix("azure://").rstrip("/"))
        config = configuration.load(given.config) if given.config else Config()
    except UnsupportedProvider:
        parser.error(
            f"--machine {given.machine}: neither the resource id of a virtual machine (/subscriptions/S/resourceGroups/"
            "G/providers/Microsoft.Compute/virtualMachines/NAME) nor of an instance of a scale set "
            "(…/virtualMachineScaleSets/NAME/virtualMachines/NUMBER)"
        )
    except ConfigError as error:
        parser.error(str(error))
    if given.release and given.write and not given.yes:
        parser.error(
            "--release with --write removes addresses without asking anybody whether containers use them; stop those "
            "containers, then add --yes"
        )
    logs.configure("error", quiet=())
    proxies.settle(os.environ, [config.azure.endpoint, os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST")])
    try:
        return asyncio.run(_run(machine, given, config))
    except KeyboardInterrupt:
        _say("stopped; a write that Azure has accepted goes on there: run this again without --write to see")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Fills or empties the NIC of one VM once, for a VM that is in no cluster. Changes only "
        "ipConfigurations named vnetpods-…; without --write it says what it would do.",
    )
    say = parser.add_argument
    say("--machine", required=True, metavar="ID", help="resource id of a VM or a scale set's instance, or azure://ID")
    say("--count", required=True, type=_count, metavar="N", help="addresses of ours that there are to be in the end")
    say("--release", action="store_true", help="remove those in excess; nobody is asked whether containers use them")
    say("--yes", action="store_true", help="no container uses what --release --write removes")
    say("--write", action="store_true", help="do it")
    say("--blocks", action="store_true", help="ask for /28 blocks where 16 or more are needed (a preview of Azure)")
    say("--nic", metavar="NAME", help="this NIC of the machine instead of its primary, or what the file chooses")
    say(
        "--config",
        type=Path,
        metavar="FILE",
        help="of the operator: `azure` and `interfaces` count, see docs/operator.md",
    )
    say("-o", "--output", choices=("text", "json"), default="text", help="what is said on standard output")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > ENTRIES_PER_NIC:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to {ENTRIES_PER_NIC}")
    return int(text)


class _Unwatched:
    """A watcher that records nothing."""

    def answered(self, operation: str, outcome: str, seconds: float) -> None:
        pass

    def remaining(self, subscription: str, kind: Kind, requests: int) -> None:
        pass


async def _run(machine: MachineId, given: argparse.Namespace, config: Config) -> int:
    budget = Budget(lambda kind: rates(config.azure.budget, kind))
    async with azure.opened(config.azure, budget, _Unwatched()) as arm:
        networks = azure.Networks(arm)
        filling = Filling(
            machine=azure.machine(arm, machine),
            order=Order(given.count, given.release, given.blocks),
            pick=lambda nics: picked(nics, given.nic, config.interfaces),
            writer=Writer(Subnets(), networks, Random()),  # noqa: S311 - spreads retries, guards nothing
            patience=float(config.azure.operation_timeout),
            say=_say,
        )
        problem = None
        try:
            await (filling.fill() if given.write else filling.look())
            if filling.plan is not None and filling.plan.limit is not None:
                problem = Problem(filling.plan.limit, filling.plan.detail)
        except AzureError as error:
            problem = problem_of(error)
        cards = await _cards(filling, networks, given.write)
    failure = report.failure(problem) if problem else None
    result = Result(machine=machine.id, count=given.count, written=given.write, nics=cards, error=failure)
    _print(result, given)
    if failure is not None:
        _say(f"{machine.id}: {failure.reason}: {failure.message}")
    return 1 if failure else 0


async def _cards(filling: Filling, networks: azure.Networks, written: bool) -> tuple[Card, ...]:
    """One card per NIC that was read, with the subnet's free addresses if the plan adds some or is limited."""
    lacking = filling.plan is not None and (filling.plan.limit is not None or any(c.add for c in filling.plan.changes))
    left = {nic.subnet: await networks.left(nic.subnet) for nic in filling.nics if lacking}
    changes = {change.nic: change for change in filling.plan.changes} if filling.plan else {}
    first = {nic.name: nic for nic in filling.before}
    return tuple(
        report.done(first.get(nic.name, nic), nic, left.get(nic.subnet))
        if written
        else report.planned(nic, changes.get(nic.name), left.get(nic.subnet))
        for nic in filling.nics
    )


def _print(result: Result, given: argparse.Namespace) -> None:
    if given.output == "json":
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result)).decode() + "\n")
    else:
        sys.stdout.write(report.text(result, release=given.release))
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {text}\n")
