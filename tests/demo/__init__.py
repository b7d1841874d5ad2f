"""The main job, end to end, on embedded parts: `python -m tests.demo`. One module per step, in order."""

from tests.demo import (
    step_1_nodes_become_ready,
    step_2_pods_get_addresses,
    step_3_pods_talk,
    step_4_the_pool_grows,
    step_5_the_pool_shrinks,
    step_6_kill_everything,
    step_7_summary,
)

STEPS = (
    step_1_nodes_become_ready,
    step_2_pods_get_addresses,
    step_3_pods_talk,
    step_4_the_pool_grows,
    step_5_the_pool_shrinks,
    step_6_kill_everything,
    step_7_summary,
)
