"""A file as a source of addresses, for a machine without Kubernetes.

It has the shape of a NodeIPPool's status, in YAML or JSON:
    interfaces: [{name: eth0, mac: "00:0d:3a:…", subnet: pods, prefixes: [10.240.0.0/16], primaryAddress: 10.240.0.4,
                  addresses: [10.240.0.5, 10.240.4.0/28], ipConfigurations: [vnetpods-1, vnetpods-2], releasing: []}]
    directCIDRs: [10.240.0.0/12]
The file's owner replaces it by rename; it is read every second. Reports go to `<file>.report.json` beside it, also by
rename and in the shape of the same status, so that the release handshake works as with a NodeIPPool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import structlog

from vnetpods_agent.sync.source import Report, SourceUnavailable, Supply
from vnetpods_api import Status
from vnetpods_kit.atomicfile import save

_PERIOD = 1.0

log = structlog.get_logger(component="filesource")


class FileSource:
    """An AddressSource."""

    truth = True
    lasting = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._trouble = ""

    @property
    def trouble(self) -> str:
        return self._trouble

    async def close(self) -> None:
        pass

    async def watch(self) -> AsyncIterator[Supply]:
        import yaml  # noqa: PLC0415 - only where it is needed

        seen: bytes | None = None
        while True:
            try:
                content = self._path.read_bytes()
                if content != seen:
                    seen = content
                    status = msgspec.convert(yaml.safe_load(content), Status)
                    self._trouble = ""
                    yield Supply(status)
            except (OSError, yaml.YAMLError, msgspec.ValidationError) as error:
                if str(error) != self._trouble:
                    log.warning("the pool's file can't be used", file=str(self._path), error=str(error))
                self._trouble = f"{self._path}: {error}"
            await asyncio.sleep(_PERIOD)

    async def publish(self, report: Report) -> None:
        try:
            file = self._path.with_name(self._path.name + ".report.json")
            await asyncio.to_thread(save, file, msgspec.json.encode(report.status))
        except OSError as error:
            raise SourceUnavailable(f"{self._path}.report.json can't be written: {error}") from error
