"""Every test runs in network and mount namespaces of the test process (see tests/isolation.py)."""

from tests.isolation import isolate

isolate()

pytest_plugins = ["tests.kube.fixtures"]
