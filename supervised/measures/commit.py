"""Commit decoding: write the most confident token into the input, run the model again, repeat.

One pass predicts every position by itself; where a board has several completions, the marginals mix
them and the parts of a prediction need not fit together. Committing one token at a time lets the
next pass condition on it, at the price of a pass for every token. For boards whose blanks are token
1 (Sudoku, N-Queens). Input: a model and a data set; output: what the checker says.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from plan_envs.queens.instances import count_completions
from plan_envs.queens.rules import Queens
from supervised.data_sets.codecs import codec_of
from supervised.data_sets.datasets import TokenBatch, TokenDataset
from supervised.measures.evaluation import EvalOptions, unroll_steps
from supervised.objectives.losses import probabilities
from trm.nn.token_model import TokenModel
from trm.nn.variable_tokens import BLANK


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """What commit decoding reaches; shares of the examples in [0, 1]."""

    num: int
    valid: float
    """The checker accepts the committed board."""
    passes: float
    """Mean number of passes, each of all supervision steps."""
    unique: float | None
    """N-Queens: share of the examples with a single completion; None elsewhere."""
    valid_of_unique: float | None
    """`valid` among these alone."""


@torch.no_grad()
def commit_decode(
    model: TokenModel,
    batch: TokenBatch,
    options: EvalOptions,
    *,
    writes: int,
) -> tuple[Int[Tensor, "batch position"], Int[Tensor, " batch"]]:
    """Boards with `writes` tokens each, and the passes that each took.

    Args:
        model: on the batch's device.
        batch: what is not `BLANK` in its inputs is written already.
        options: the supervision steps of a pass, and what later steps embed.
        writes: tokens of a complete board (Sudoku: cells, N-Queens: queens).
    """
    board = batch.inputs.clone()
    passes = torch.zeros(len(board), dtype=torch.long, device=board.device)
    while True:
        open_rows = (board != BLANK).sum(dim=1) < writes
        if not bool(open_rows.any()):
            return board, passes
        rows = open_rows.nonzero().flatten()
        part = dataclasses.replace(batch, inputs=board).rows(rows)
        for readout in unroll_steps(model, part, options):
            logits = readout.guided
        probability = probabilities(logits, kind=options.loss)[..., BLANK + 1 :]
        free = (part.inputs == BLANK)[..., None]
        best = probability.masked_fill(~free, -1.0).flatten(1).argmax(dim=1)
        choices = probability.shape[-1]
        board[rows, best // choices] = best % choices + BLANK + 1
        passes[rows] += 1


def evaluate_commit(model: TokenModel, dataset: TokenDataset, options: EvalOptions) -> Committed:
    """Commit decoding of the first `options.num` examples of a data set, None = all.

    Raises:
        ValueError: for a data set of mazes or of ARC: their plans are no blanks to fill.
    """
    name = dataset.info.domain
    if not name.startswith(("sudoku", "queens")):
        raise ValueError(f"commit decoding is for Sudoku and N-Queens, not for {name!r}")
    domain = codec_of(name).domain
    writes = domain.n if isinstance(domain, Queens) else dataset.info.num_positions
    count = len(dataset) if options.num is None else min(options.num, len(dataset))
    device = model.start_h.device
    valid, passes, single = [], [], []
    for first in range(0, count, options.batch_size):
        last = min(count, first + options.batch_size)
        batch = dataset.batch(np.arange(first, last)).to(device)
        board, taken = commit_decode(model, batch, options, writes=writes)
        valid.append(dataset.verdict(batch, board).solved)
        passes.append(taken.cpu().numpy())
        if isinstance(domain, Queens):
            given = (batch.inputs.cpu().numpy() - BLANK).astype(np.int8)
            single.append(count_completions(given, n=domain.n, limit=2) == 1)
    solved = np.concatenate(valid)
    unique = np.concatenate(single) if single else None
    of_unique = None if unique is None or not unique.any() else float(solved[unique].mean())
    return Committed(
        num=count,
        valid=float(solved.mean()),
        passes=float(np.concatenate(passes).mean()),
        unique=None if unique is None else float(unique.mean()),
        valid_of_unique=of_unique,
    )
