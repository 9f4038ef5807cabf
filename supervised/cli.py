"""`upi-trm supervised`: train the backbone with labels, and what that needs.

The entry point `supervised` of the group `upi_trm.commands` names `supervised`, the click group.
Everything that costs time to import (torch, numba) stands inside the commands.
"""

import click

from supervised.data_cli import data


@click.group()
def supervised() -> None:
    """TRM, HRM and Deep Improvement Supervision: the same backbone, trained with labels."""


supervised.add_command(data)
