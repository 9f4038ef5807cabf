"""`upi-trm supervised`: train the backbone with labels, and what that needs.

The entry point `supervised` of the group `upi_trm.commands` names `supervised`, the click group.
Everything that costs time to import (torch, numba) is imported inside the commands.
"""

import click

from supervised.commands.caches import cache
from supervised.commands.data import data
from supervised.commands.measuring import compare, diagnose, evaluate_run, vote
from supervised.commands.training import distill, import_checkpoint, info, train


@click.group()
def supervised() -> None:
    """TRM, HRM and Deep Improvement Supervision: the same backbone, trained with labels."""


for command in (
    *(train, evaluate_run, compare, info, import_checkpoint, data),
    *(cache, distill, diagnose, vote),
):
    supervised.add_command(command)
