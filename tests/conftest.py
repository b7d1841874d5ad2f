"""Every test runs in network and mount namespaces of the test process (see tests/isolation.py)."""

from tests import pace
from tests.isolation import isolate

pace.factor()
isolate()

pytest_plugins = ["tests.limits", "tests.kube.fixtures"]
