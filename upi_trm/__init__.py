"""UPI-TRM: a tiny recursive model that learns to solve puzzles by unrolled policy iteration.

The learner stands on two packages: `plan_envs`, the puzzles as plan-editing MDPs, and `trm`, the
shared backbone. Importing this package is cheap on purpose (no torch): `upi-trm --help` is fast.
"""

__version__ = "0.1.0"
