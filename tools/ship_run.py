"""Makes a finished run one that ships with the package: `python tools/ship_run.py RUN NAME`.

It works in a checkout, from a run that was trained from a clean commit. CONTRIBUTING.md says when.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trm.experiments.shipped_runs import FOLDER

MOST_BYTES = 300_000
"""Of a shipped run's weights."""


def ship(run_folder: Path, name: str) -> Path:
    """Put a run among those that ship, in place of one of the same name.

    Kept are recipe, run.json, the evaluator and the deployed policy of the newest checkpoint, what
    the run cost, and its evaluation record (made where it is missing).

    Raises:
        ValueError: not a run of this learner, trained from a changed working tree, or too large.
    """
    from trm.experiments.records import RECORD_FILE, keep_record
    from trm.runs.checkpoints import part_of
    from trm.runs.durable import replace_durably
    from trm.runs.files import json_bytes, read_json
    from trm.runs.run import Run
    from upi_trm.deployment import deployed_part
    from upi_trm.recipe import RUN_KIND, UpiRecipe

    run = Run.open(run_folder, kind=RUN_KIND)
    commit: Any = run.info.provenance.get("git")
    if not isinstance(commit, dict) or commit.get("dirty", True):
        raise ValueError(f"{run_folder}: was not trained from a clean commit, which run.json names")
    checkpoint = run.load_checkpoint()
    kept = ("evaluator", deployed_part(run.load_recipe(UpiRecipe)))
    weights = {
        f"{part}.{key}": tensor
        for part in kept
        for key, tensor in part_of(checkpoint.weights, part).items()
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    if size > MOST_BYTES:
        raise ValueError(f"{run_folder}: {size} bytes of weights, {MOST_BYTES} may ship")
    keep_record(run_folder)
    folder = FOLDER / name
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True)
    replace_durably(folder / "recipe.yaml", (run_folder / "recipe.yaml").read_bytes())
    # Where the machine that trained it kept its runs is nobody's business.
    told = {name: read_json(run_folder / name) for name in ("run.json", RECORD_FILE)}
    for one in told.values():
        one["command"] = one["command"].replace(str(run_folder.parent), "runs")
    replace_durably(folder / "run.json", json_bytes({**told["run.json"], "format_version": 2}))
    replace_durably(folder / RECORD_FILE, (json.dumps(told[RECORD_FILE]) + "\n").encode())
    with Run.open(folder, write=True) as shipped:
        usage = checkpoint.state.get("usage", {})
        shipped.save_checkpoint(checkpoint.step, weights=weights, state={"usage": usage})
    (folder / ".lock").unlink(missing_ok=True)
    return folder


def main(words: Sequence[str]) -> None:
    """Ship a run: RUN NAME."""
    if len(words) != 2:
        sys.exit("usage: python tools/ship_run.py RUN NAME")
    try:
        print(ship(Path(words[0]), words[1]))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
