"""Every test runs in network and mount namespaces of the test process (see tests/isolation.py)."""

import signal

from tests import pace
from tests.isolation import isolate

pace.factor()
isolate()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)  # a background job ignores the one, the other ends untidily

pytest_plugins = ["tests.limits", "tests.kube.fixtures"]
