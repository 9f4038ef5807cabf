"""Update maps z -> f(z, u) of the latent recursion: the flat MLP of the UPI paper, and relational.

An update map knows nothing of puzzles: it is built from plain integers and from constraint groups
given as partitions of the (cell, value) variables. Input comes from the encoder in `model.py` as
the injection u, output goes to the heads; only the path z -> z is limited by a contraction (UPI-TRM
Sec. 4), u is free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trm.nn.group_linear import GroupRows, group_linear
from trm.nn.group_ops import group_sums, run_max


class GroupStructure(nn.Module):
    """Constraint groups as partitions: every variable has one label for each kind of group.

    The mean over a group of k members, written back to them, is an orthogonal projection P_g of
    norm 1; we use the sum divided by sqrt(k), which is sqrt(k) P_g and keeps the variance of
    independent members. A batch may leave variables out (`VariableBatch`): absent variables count
    as zeros, so that dropping them is again a projection and every bound on W_z + sum_g sqrt(k) W_g
    P_g still holds.
    """

    labels: Tensor
    sizes: Tensor
    group_sizes: Tensor
    slots: Tensor
    members: Tensor

    def __init__(self, groups: Mapping[str, Sequence[int] | Tensor], num_variables: int) -> None:
        """Build from `name -> label of each variable`, each of length `num_variables`."""
        super().__init__()
        self.names = tuple(groups)
        self.num_variables = num_variables
        labels, sizes, self.num_groups = [], [], []
        for name, given in groups.items():
            label = torch.as_tensor(given, dtype=torch.long)
            if label.shape != (num_variables,):
                raise ValueError(
                    f"groups[{name!r}] must label {num_variables} variables,"
                    f" got {tuple(label.shape)}"
                )
            _, compact = torch.unique(label, return_inverse=True)
            count = torch.bincount(compact)
            labels.append(compact)
            sizes.append(count[compact].to(torch.float32))
            self.num_groups.append(len(count))
        empty = torch.zeros(0, num_variables)
        self.register_buffer(
            "labels", torch.stack(labels) if labels else empty.long(), persistent=False
        )
        group_sizes = torch.ones(len(labels), max(self.num_groups, default=0))
        for kind, (label, size) in enumerate(zip(labels, sizes, strict=True)):
            group_sizes[kind, label] = size
        self.register_buffer("group_sizes", group_sizes, persistent=False)
        self.uniform = [bool((size == size[0]).all()) for size in sizes]
        self.register_buffer("sizes", torch.stack(sizes) if sizes else empty, persistent=False)
        # Of every variable, as rows: its group among those of all kinds, and members of each.
        first = torch.tensor([0, *self.num_groups]).cumsum(0)[:-1]
        slots = (self.labels + first[:, None]).T.int().contiguous()
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("members", self.sizes.T.contiguous(), persistent=False)

    def __len__(self) -> int:
        """Number of kinds of groups."""
        return len(self.names)

    def num_classes(self, tied: Sequence[Sequence[str]] = ()) -> int:
        """Number of weights that the kinds of groups need when the `tied` ones share theirs."""
        return max(_weight_classes(self, tied), default=-1) + 1

    def scaled_product(
        self,
        totals: Float[Tensor, "group channel"],
        weight: Float[Tensor, "channel out"],
        kind: int,
    ) -> Float[Tensor, "group out"]:
        """(group sums of a batch / sqrt(k)) @ weight, k = members in the full partition."""
        count = self.num_groups[kind]
        scale = self.group_sizes[kind, :count].rsqrt()
        if self.uniform[kind]:
            return totals @ (weight * scale[0])
        return (totals.view(-1, count, totals.shape[1]) * scale[:, None]).view_as(totals) @ weight


@dataclass(frozen=True, kw_only=True, slots=True)
class VariableBatch:
    """The variables of a batch that take part in the recursion, ragged: row t is one variable."""

    batch: int
    """Number of states."""
    state: Int[Tensor, " row"]
    """State that a row belongs to, ascending."""
    variable: Int[Tensor, " row"]
    """Index of the variable, cell * num_values + value - 1."""
    groups: GroupRows
    """Which rows share a constraint group."""

    @staticmethod
    def select(
        structure: GroupStructure, active: Bool[Tensor, "batch variable"]
    ) -> "VariableBatch":
        """The rows of the variables where `active` is True."""
        state, variable = active.nonzero(as_tuple=True)
        return VariableBatch.of(structure, state, variable, batch=active.shape[0])

    @staticmethod
    def of(
        structure: GroupStructure,
        state: Int[Tensor, " row"],
        variable: Int[Tensor, " row"],
        *,
        batch: int,
    ) -> "VariableBatch":
        """The given variables; `state` must ascend."""
        per_state = torch.tensor(structure.num_groups, device=state.device, dtype=torch.long)
        groups = GroupRows(
            ends=torch.searchsorted(state, torch.arange(1, batch + 1, device=state.device)),
            slots=structure.slots[variable],
            num_slots=sum(structure.num_groups),
            scale=structure.members[variable].rsqrt(),
            group=structure.labels[:, variable] + per_state[:, None] * state,
            num_groups=tuple(n * batch for n in structure.num_groups),
        )
        return VariableBatch(batch=batch, state=state, variable=variable, groups=groups)

    def group_sums(self, rows: Float[Tensor, "row channel"]) -> tuple[Tensor, ...]:
        """Sums of the present members of each group: [group, channel] for each kind."""
        return group_sums(rows, self.groups.group, self.groups.num_groups)

    def shares(self) -> Float[Tensor, "kind row"]:
        """1 / (present members of the row's group), for each kind: 1 where a row stands alone."""
        ones = torch.ones(self.state.shape[0], 1, device=self.state.device)
        totals = zip(self.group_sums(ones), self.groups.group, strict=True)
        return torch.stack([total[index, 0].reciprocal() for total, index in totals])

    def state_sum(self, rows: Float[Tensor, "row channel"]) -> Float[Tensor, "batch channel"]:
        """Sum over the present variables of each state."""
        return group_sums(rows, self.state[None], [self.batch])[0]

    def state_max(self, rows: Float[Tensor, "row channel"]) -> Float[Tensor, "batch channel"]:
        """Maximum over the present variables of each state; 0 for a state without any."""
        return run_max(rows, self.state, self.batch)


class GroupLinear(nn.Module):
    """Linear mixing: W_z z + sum_g sqrt(k) W_g P_g z (+ bias), P_g the mean over group g.

    Each set of `tied` names kinds of groups that share one weight (rows and columns of Sudoku: then
    the map commutes with transposition too; of N-Queens also both diagonals).
    """

    def __init__(
        self,
        structure: GroupStructure,
        in_channels: int,
        out_channels: int,
        *,
        tied: Sequence[Sequence[str]] = (),
        gain: float = 1.0,
        bias: bool = True,
        generator: torch.Generator,
    ) -> None:
        """Draw weights N(0, gain^2 / in_channels) from `generator`; group weights too."""
        super().__init__()
        self.structure = structure
        self.weight_of_kind = _weight_classes(structure, tied)
        classes = structure.num_classes(tied)
        scale = gain * in_channels**-0.5
        self.own = nn.Parameter(torch.randn(in_channels, out_channels, generator=generator) * scale)
        self.grouped = nn.Parameter(
            torch.randn(classes, in_channels, out_channels, generator=generator) * scale
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(
        self,
        rows: Float[Tensor, "row channel"],
        variables: VariableBatch,
        *,
        injection: Float[Tensor, "row out"] | None = None,
        rectify: bool = False,
        radius: float | None = None,
    ) -> Float[Tensor, "row out"]:
        """Mix the rows of a batch; add the injection, take relu and project onto a ball."""
        added = injection
        if added is None:
            added = self.own.new_zeros(1, self.own.shape[1])
        if self.bias is not None:
            added = added + self.bias
        return group_linear(
            rows,
            added,
            torch.cat([self.own[None], self.grouped]),
            variables.groups,
            classes=self.weight_of_kind,
            rectify=rectify,
            radius=radius,
        )

    def over_classes(self, values: Float[Tensor, "kind row"]) -> Float[Tensor, "row feature"]:
        """Mean and maximum over the kinds that share a weight: blind to which of them is which."""
        columns = []
        for index in range(len(self.grouped)):
            same = values[[k for k, used in enumerate(self.weight_of_kind) if used == index]]
            columns += [same.mean(dim=0), same.amax(dim=0)]
        return torch.stack(columns, dim=1)


class GroupReadout(nn.Module):
    """What every constraint group holds, pooled over the groups of a state by mean and by maximum.

    A group's features are the sum of its variables' latents, how many variables are present and how
    many the plan has set. An empty group that nothing satisfies has no variable to speak for it:
    only here, and only with the maximum, can one such group be seen among hundreds.
    """

    def __init__(
        self,
        structure: GroupStructure,
        channels: int,
        *,
        tied: Sequence[Sequence[str]] = (),
        generator: torch.Generator,
    ) -> None:
        """`channels` = size of a variable's latent, and of what is read from a group."""
        super().__init__()
        self.structure = structure
        self.weight_of_kind = _weight_classes(structure, tied)
        classes = structure.num_classes(tied)
        scale = (channels + 2) ** -0.5
        self.weight = nn.Parameter(
            torch.randn(classes, channels + 2, channels, generator=generator) * scale
        )
        self.bias = nn.Parameter(torch.zeros(classes, channels))
        self.out_features = 2 * classes * channels

    def forward(
        self,
        rows: Float[Tensor, "row channel"],
        variables: VariableBatch,
        placed: VariableBatch,
    ) -> Float[Tensor, "batch feature"]:
        """`placed`: the variables that the plan has set."""
        batch, channels = variables.batch, rows.shape[1]
        classes = len(self.weight)
        means: list[list[Tensor]] = [[] for _ in range(classes)]
        maxima: list[list[Tensor]] = [[] for _ in range(classes)]
        counted = torch.cat([rows, rows.new_ones(rows.shape[0], 1)], dim=1)
        one = rows.new_ones(placed.state.shape[0], 1)
        sums = (variables.group_sums(counted), placed.group_sums(one), self.weight_of_kind)
        for kind, (total, number_set, index) in enumerate(zip(*sums, strict=True)):
            weight = self.weight[index]
            read = self.structure.scaled_product(total, weight[:-1], kind)
            read = torch.relu(read + torch.addcmul(self.bias[index], number_set, weight[-1:]))
            read = read.view(batch, -1, channels)
            means[index].append(read.mean(dim=1))
            maxima[index].append(read.amax(dim=1))
        return torch.cat(
            [torch.stack(parts).mean(dim=0) for parts in means]
            + [torch.stack(parts).amax(dim=0) for parts in maxima],
            dim=1,
        )


class RelationalMap(nn.Module):
    """z <- relu(W_z z + sum_g sqrt(k) W_g P_g z + u), one latent per (cell, value) variable.

    Equivariant to relabelled values and permuted groups. Lipschitz in z with constant ||W_z + sum_g
    sqrt(k) W_g P_g||, since relu is 1-Lipschitz and u does not depend on z; `upi_trm.contraction`
    computes and clamps it.
    """

    def __init__(
        self,
        structure: GroupStructure,
        channels: int,
        *,
        tied: Sequence[Sequence[str]] = (),
        gain: float = 0.5,
        generator: torch.Generator,
    ) -> None:
        """`channels` = size of each variable's latent."""
        super().__init__()
        self.structure = structure
        self.mix = GroupLinear(
            structure,
            channels,
            channels,
            tied=tied,
            gain=gain,
            bias=False,
            generator=generator,
        )

    def forward(
        self,
        z: Float[Tensor, "row channel"],
        injection: Float[Tensor, "row channel"],
        variables: VariableBatch,
        *,
        radius: float | None = None,
    ) -> Float[Tensor, "row channel"]:
        """One latent update, projected onto the ball of a radius where one is given."""
        out: Tensor = self.mix(z, variables, injection=injection, rectify=True, radius=radius)
        return out


class MLPMap(nn.Module):
    """z <- W_2 relu(W_1 z + u): the flat two-layer map of the UPI paper (App. B, d = 128).

    Lipschitz in z with constant ||W_1|| ||W_2||.
    """

    def __init__(self, width: int, *, gain: float = 0.5, generator: torch.Generator) -> None:
        """`width` = d, the size of the latent."""
        super().__init__()
        scale = gain * width**-0.5
        self.first = nn.Parameter(torch.randn(width, width, generator=generator) * scale)
        self.second = nn.Parameter(torch.randn(width, width, generator=generator) * scale)

    def forward(
        self, z: Float[Tensor, "batch width"], injection: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch width"]:
        """One latent update."""
        return torch.relu(z @ self.first + injection) @ self.second


def name_sets(given: Sequence[Any]) -> tuple[tuple[str, ...], ...]:
    """Sets of names, from a list of lists or from one flat list."""
    sets = [given] if given and all(isinstance(item, str) for item in given) else given
    for names in sets:
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise ValueError(
                f"model.tied_groups must be a list of lists of names, got {list(given)}"
            )
    return tuple(tuple(names) for names in sets)


def _weight_classes(structure: GroupStructure, tied: Sequence[Sequence[str]]) -> list[int]:
    """Index of the weight that each kind of group uses: one a kind, each tied set shares one."""
    named = [name for names in tied for name in names]
    unknown = sorted(set(named) - set(structure.names))
    if unknown:
        raise ValueError(f"tied_groups names {unknown[0]!r}, groups are {structure.names}")
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ValueError(f"tied_groups names {twice[0]!r} more than once")
    set_of = {name: tuple(names) for names in tied for name in names}
    classes: list[tuple[str, ...]] = []
    used = []
    for name in structure.names:
        key = set_of.get(name, (name,))
        if key not in classes:
            classes.append(key)
        used.append(classes.index(key))
    return used
