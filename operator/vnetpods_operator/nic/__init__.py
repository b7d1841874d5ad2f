"""`vnetpods-operator nic`: fills or empties the NICs of one VM once, without a cluster.

Uses the operator's planner, machines, budget and writes, with a person in place of Node, pool and agent: `--count` is
the desired state, and `--release --yes` replaces the agent's acknowledgement that no pod uses an address. Needs no
Kubernetes.
"""
