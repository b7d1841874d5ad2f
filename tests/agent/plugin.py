"""The verbs as server and spool call them, over a desk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.agent.desk import Desk, desk
from vnetpods_agent.attachment import SandboxHandles
from vnetpods_agent.cni.commands import Commands
from vnetpods_agent.cni.frames import Command, Request, Response
from vnetpods_agent.cni.protocol import VERSIONS

ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1"


@dataclass
class Plugin:
    """Calls the verbs as server and spool do."""

    desk: Desk
    verbs: Commands
    unfit: str = ""
    limited: str = ""
    outcomes: list[tuple[str, str]] = field(default_factory=list)

    async def call(self, verb: Command, **more: Any) -> Response:
        """`env` and `conf` are laid over what a runtime sends; None takes a variable or key away."""
        conf = {"cniVersion": "1.1.0", "name": "vnetpods", "type": "vnetpods"} | more.get("conf", {})
        env = {
            "CNI_COMMAND": verb.name,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/run/netns/n1",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": ARGS,
        } | more.get("env", {})
        stdin = more.get("stdin", json.dumps({k: v for k, v in conf.items() if v is not None}).encode())
        request = Request(
            verb=verb,
            env={k: v for k, v in env.items() if v is not None},
            stdin=stdin,
            handles=more.get("handles", SandboxHandles(-1, -1)),
            deadline=asyncio.get_running_loop().time() + more.get("within", 5.0),
            spooled=more.get("spooled"),
            netns_errno=more.get("netns_errno", 0),
        )
        return await self.verbs.handle(request)

    async def ok(self, verb: Command, **more: Any) -> Any:
        response = await self.call(verb, **more)
        assert response.exit_code == 0, response.stdout
        return json.loads(response.stdout) if response.stdout else None

    async def refused(self, verb: Command, **more: Any) -> tuple[int, str]:
        """Code and what it says."""
        response = await self.call(verb, **more)
        assert response.exit_code == 1
        body = json.loads(response.stdout)
        assert body["cniVersion"] in VERSIONS
        return body["code"], f"{body['msg']}: {body.get('details', '')}"


@asynccontextmanager
async def plugin(tmp_path: Path, *addresses: str) -> AsyncIterator[Plugin]:
    async with desk(tmp_path, *addresses) as made:
        caught_up = asyncio.Event()
        caught_up.set()
        verbs = Commands(
            attachments=made.attachments,
            kernel=made.kernel,
            plane=made.plane,
            unfit=lambda: found.unfit,
            limited=lambda: found.limited,
            observe=lambda verb, outcome, _: found.outcomes.append((verb, outcome)),
            caught_up=caught_up,
            guarded=asyncio.Event(),
        )
        verbs.guarded.set()
        found = Plugin(made, verbs)
        yield found
