"""Imports only pyroute2's message classes: they pack and decode, the socket is ours (`netlink.socket`).

pyroute2's own `__init__` imports all its sockets: 188 modules, 7.4 MB and 0.25 s on every node. The classes needed here
take eight modules, 0.2 MB and 0.01 s. So that file isn't executed: in this process `pyroute2` is a bare package of its
modules, without `IPRoute` and the like.
"""

from __future__ import annotations

import importlib.util
import sys

if (_spec := importlib.util.find_spec("pyroute2")) and "pyroute2" not in sys.modules:
    sys.modules["pyroute2"] = importlib.util.module_from_spec(_spec)

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = ["fibmsg", "ifaddrmsg", "ndmsg", "rtmsg"]
