"""`upi-trm export`: a run as a file for other programs; heavy imports stand inside the command."""

from pathlib import Path

import click

from trm.experiments.options import RunPath, checkpoint_option


@click.command()
@click.argument("run_path", metavar="RUN", type=RunPath())
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("policy.onnx"),
    show_default=True,
    help="The file to write.",
)
@checkpoint_option
def export(*, run_path: Path, out: Path, step: int | str | None) -> None:
    """Write the networks of a run as an ONNX graph (extra `export`).

    Inputs are instance, plan and mask of an observation, int8, of any batch size; outputs are the
    probabilities of all edits, the values, and the edit values where the network says them. The
    graph is written only if its outputs equal the run's to 1e-5.
    """
    from trm.experiments.trained.export import INPUTS, OPSET, export_onnx
    from trm.experiments.trained.model import load

    click.echo("tracing the networks, which takes minutes for a deep recursion", err=True)
    written = export_onnx(load(run_path, step=step), out)
    click.echo(
        f"wrote {out} (opset {OPSET}): {', '.join(INPUTS)} -> {', '.join(written.outputs)}\n"
        f"its outputs equal the run's to {written.difference:.0e} on {written.states} states"
    )
