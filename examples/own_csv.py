"""Evaluate a run on a CSV file of your own puzzles, beside the reference policies.

The columns are source, question, answer and rating. `upi-trm eval RUN --instances FILE` does the
same from a shell.
"""

import tempfile
from pathlib import Path

from rich.console import Console

import upi_trm
from plan_envs.hub import read_instances

ROWS = """source,question,answer,rating
mine,1..4..1.2..3..2.,1234341221434321,0
mine,.23434.22.43432.,1234341221434321,0
"""

model = upi_trm.load("pretrained:sudoku4x4", threads=1)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "mine.csv"
    file.write_text(ROWS)
    instances = read_instances(str(file), domain=model.domain)
board = model.evaluate(instances)
Console().print(board.table())
