"""`vnetpods-operator nic`: fills or empties the NICs of one VM once, without a cluster.

The operator's own planner, machines, budget and writes, with a person in the place of Node, pool and agent: `--count`
is what is wanted, and `--release --yes` stands for the agent's word that nobody uses an address. Needs no Kubernetes.
"""
