"""Tokens as (position, value) variables: what the relational token model recurs on.

Token 0 is padding, 1 blank, `FIRST_VALUE` + k the value k + 1 of a position, and every kind of
constraint group partitions the variables, at most one of a group being true. A written token
excludes the others of its groups; the variables that are left are the rows of the recursion, and
each gets one logit. Input and output are those of `token_model.TokenModel`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trm.nn.blocks import GroupLinear, GroupStructure, VariableBatch
from trm.nn.cells import linear

BLANK, FIRST_VALUE = 1, 2
"""Token of a position without a value, and that of the first value."""

CERTAIN = 100.0
"""Logit of what the written tokens decide, with its sign; e^-100 is 0 in float32."""


class VariableTokens(nn.Module):
    """The injection of a board's open variables, and token logits of their latents.

    Blank has the logit -max over the position's values: it is predicted where no value is more
    likely than not, as for most squares of N-Queens.
    """

    def __init__(
        self,
        structure: GroupStructure,
        vocab_size: int,
        width: int,
        *,
        tied: Sequence[Sequence[str]],
        generator: torch.Generator,
    ) -> None:
        """`width` = channels of a variable; `tied` as `GroupLinear` has it."""
        super().__init__()
        self.structure, self.num_values = structure, vocab_size - FIRST_VALUE
        inputs = 2 * structure.num_classes(tied)
        self.embed = GroupLinear(structure, inputs, width, tied=tied, generator=generator)
        self.inject = GroupLinear(structure, width, width, tied=tied, generator=generator)
        self.hidden = linear(width, 2 * width, generator)
        self.out = linear(2 * width, 1, generator, gain=0.1)

    def written(self, inputs: Int[Tensor, "batch position"]) -> Bool[Tensor, "batch variable"]:
        """The variables whose token stands in the input."""
        values = torch.arange(self.num_values, device=inputs.device) + FIRST_VALUE
        return (inputs[:, :, None] == values).flatten(1)

    def open(self, inputs: Int[Tensor, "batch position"]) -> VariableBatch:
        """The variables that share no group with a written one."""
        structure, written = self.structure, self.written(inputs)
        state, variable = written.nonzero(as_tuple=True)
        excluded = torch.zeros_like(written)
        for label, count in zip(structure.labels, structure.num_groups, strict=True):
            taken = torch.zeros(len(inputs), count, dtype=torch.bool, device=inputs.device)
            taken[state, label[variable]] = True
            excluded |= taken[:, label]
        return VariableBatch.select(structure, ~excluded)

    def injection(self, variables: VariableBatch) -> Float[Tensor, "row channel"]:
        """x: read from how constrained each variable is, its share of each of its groups."""
        shares = self.embed.over_classes(variables.shares()).to(self.embed.own.dtype)
        out: Tensor = self.inject(torch.relu(self.embed(shares, variables)), variables)
        return out

    def read(
        self,
        rows: Float[Tensor, "row channel"],
        variables: VariableBatch,
        inputs: Int[Tensor, "batch position"],
    ) -> Float[Tensor, "batch position vocab"]:
        """Token logits, `CERTAIN` with its sign for what the input decides."""
        logit = self.out(torch.relu(self.hidden(rows))).squeeze(1)
        decided = torch.where(self.written(inputs), CERTAIN, -CERTAIN).to(logit.dtype)
        values = decided.index_put((variables.state, variables.variable), logit)
        values = values.view(len(inputs), -1, self.num_values)
        padding = values.new_full((*values.shape[:2], 1), -CERTAIN)
        return torch.cat((padding, -values.amax(dim=2, keepdim=True), values), dim=2)
