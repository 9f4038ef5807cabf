"""`upi-trm supervised data`: build the data sets that supervised training reads, look at them."""

import json
from pathlib import Path

import click


@click.group()
def data() -> None:
    """Build token data sets, and say what is in one."""


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Read every file and compare sizes and SHA-256.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on one line.")
def info(*, folder: Path, check: bool, as_json: bool) -> None:
    """Say what the data set in FOLDER holds."""
    from supervised.datasets import check_files, read_info

    found = read_info(folder)
    if check:
        check_files(folder, found)
    if as_json:
        click.echo(json.dumps(found.summary()))
        return
    for name, value in found.summary().items():
        click.echo(f"{name:<14} {value if isinstance(value, str | int) else json.dumps(value)}")
    if check:
        click.echo(f"all {len(found.files)} files are whole")
