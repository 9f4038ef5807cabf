"""`TinyRecursiveModel`: encoder, latent recursion, value head and masked edit head on one backbone.

Built from a `ModelShape` (plain integers and arrays, no puzzle) and a `ModelConfig` (a recipe's
`model` section). The encoder turns (x, y, mask) into the injection u, `recursion.unroll` iterates
the update map on u, the heads read the last latent: V_psi(z^(n)) and one logit per edit (UPI-TRM
Sec. 2, Fig. 1).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trm.nn.blocks import (
    GroupLinear,
    GroupReadout,
    GroupStructure,
    MLPMap,
    RelationalMap,
    VariableBatch,
    name_sets,
)
from trm.nn.cells import AttentionMap, CellReader, MixerMap, NeighbourMap, cell_pools
from trm.nn.cells import linear as _linear
from trm.nn.group_ops import group_spread, group_sums
from trm.nn.recursion import project_ball, unroll
from trm.ranges import check_at_least, check_positive

Step = Callable[["TinyRecursiveModel", Tensor, "Encoding"], Tensor]
"""One latent update Pi_R(f(z, u)) of a model."""

_ATTENTION_HEADS = 4

_EDIT_HEAD = ("edit_hidden", "edit_out", "cell_hidden", "pool_hidden", "pool_out")
"""The modules that only `edit_logits` reads."""

ILLEGAL_LOGIT = -1e9
"""Logit of an edit that the mask forbids; exp of it is exactly 0 in float32."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What a model must know of a domain: sizes, the action table and the constraint groups."""

    num_cells: int
    num_values: int
    num_actions: int
    action_cell: Int[Tensor, " action"]
    """Cell an action edits, -1 for none."""
    action_value: Int[Tensor, " action"]
    """Value 1..num_values it writes, 0 for none."""
    action_kind: Int[Tensor, " action"]
    """Actions of one kind share head weights."""
    groups: Mapping[str, Int[Tensor, " variable"]] = field(default_factory=dict)
    """Partitions of the variables, name -> label."""
    neighbours: Int[Tensor, "cell direction"] | None = None
    """Cells next to each cell, -1 for none."""
    instance_layers: int = 1
    """Boards of `num_cells` that an instance holds."""
    num_instance_values: int = 0
    """Largest integer of an instance; 0 stands for `num_values`."""


def _columns(shape: ModelShape) -> Int[Tensor, " action"]:
    """Which logit of its cell an edit has: writes by kind and value, then the others by kind."""
    kind, value = shape.action_kind.long(), shape.action_value.long()
    writes = (shape.action_cell >= 0) & (value > 0)
    kinds = kind[writes].unique()
    of_write = torch.searchsorted(kinds, kind) * shape.num_values + value - 1
    return torch.where(writes, of_write, len(kinds) * shape.num_values + kind)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `model` section of a recipe."""

    update_map: Literal["mlp", "relational", "neighbour", "mixer", "attention"] = "relational"
    """f_theta: flat two-layer MLP (the paper's); one latent per (cell, value) variable, mixed over
    constraint groups; or one latent per cell, mixed over the cells next to it (`neighbour`) or over
    all cells (`mixer`, `attention`)."""
    channels: int = 24
    """d: size of the latent (of each variable's or cell's latent where there are many)."""
    depth: int = 4
    """n: unrolls of the latent recursion in training and use."""
    latent: Literal["episodic", "persistent"] = "episodic"
    """Where the recursion of an edit starts: at z = 0, or where the edit before left z (UPI-TRM
    Sec. 2, App. F), 0 at the start of an episode. A variable keeps its latent as long as it takes
    part; one that comes in starts at 0."""
    radius: float | None = 10.0
    """R of the ball projection Pi_R; null switches it off."""
    head_width: int = 64
    """Hidden units of the value and edit heads."""
    encoder_layers: int = 0
    """relational: further layers of the encoder, each mixed over the groups and added to what it
    reads. A contraction limits the recursion alone, so that these are free."""
    variables: Literal["legal", "legal_and_plan"] = "legal_and_plan"
    """Which variables take part: those that an edit may set now, or these and the values already in
    the plan. `legal` is faster and loses nothing where the mask already excludes conflicts."""
    tied_groups: tuple[Any, ...] = ()
    """Sets of kinds of groups that share weights, e.g. [[row, column], [diagonal, antidiagonal]];
    one set may be written flat, [row, column]. Kept as a tuple of tuples of names."""

    RETIRED: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "tolerance": (None, "it was removed: adaptive unrolling is an option of playing"),
        "attention_heads": (
            _ATTENTION_HEADS,
            f"it was removed: the attention map has {_ATTENTION_HEADS} heads",
        ),
        "neighbour_pool": ("max", "it was removed: the neighbour map takes maxima"),
    }
    """See `trm.runs.recipe.Retired`."""

    def __post_init__(self) -> None:
        check_at_least(self, "model", 1, "channels", "head_width")
        check_at_least(self, "model", 0, "depth", "encoder_layers")
        check_positive(self, "model", "radius")
        object.__setattr__(self, "tied_groups", name_sets(self.tied_groups))


@dataclass(frozen=True, kw_only=True, slots=True)
class StateBatch:
    """States s = (x, y) with the mask of legal edits; integer tensors on the model's device."""

    instance: Int[Tensor, "batch observed"]
    """What learners see of the instances."""
    plan: Int[Tensor, "batch cell"]
    mask: Int[Tensor, "batch action"]
    """1 = legal."""
    start: Float[Tensor, "batch place channel"] | None = None
    """Persistent z: latents that the recursion starts from, for every variable or cell, or one for
    the flat map; what takes no part is ignored."""

    def __len__(self) -> int:
        """Number of states."""
        return len(self.plan)

    def select(self, index: Int[Tensor, " chosen"] | slice) -> "StateBatch":
        """The chosen states."""
        return StateBatch(
            instance=self.instance[index],
            plan=self.plan[index],
            mask=self.mask[index],
            start=None if self.start is None else self.start[index],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """Injection u of a batch, and what its rows are: states, variables or cells."""

    injection: Float[Tensor, "row channel"]
    batch: int
    variables: VariableBatch | None = None
    """Relational map: the variables that the rows belong to."""
    placed: VariableBatch | None = None
    """Relational map: the variables that the plan has set."""
    editable: Bool[Tensor, "batch cell"] | None = None
    """Maps over cells: the cells that a legal edit writes."""
    start: Float[Tensor, "row channel"] | None = None
    """z^(0) where it is not 0."""

    @property
    def row_state(self) -> Int[Tensor, " row"]:
        """The state that each row belongs to."""
        if self.variables is not None:
            return self.variables.state
        # One row a state, or as many as there are cells.
        rows = torch.arange(len(self.injection), device=self.injection.device)
        return rows // (len(rows) // max(1, self.batch))


class TinyRecursiveModel(nn.Module):
    """Evaluator and edit policy over one latent recursion.

    `encode` -> `recur` -> `value` / `edit_logits`; `forward` does all four. An episodic latent
    starts at zero for every state; a persistent one at `StateBatch.start`, which `memory` makes of
    the latent of the state before.
    """

    write_action: Tensor
    action_variable: Tensor
    action_cell: Tensor
    action_kind: Tensor
    action_column: Tensor
    variable_cell: Tensor
    variable_value: Tensor
    on_cell: Tensor
    beside_values: Tensor
    overall: Tensor

    def __init__(
        self, shape: ModelShape, config: ModelConfig, *, generator: torch.Generator
    ) -> None:
        """Initialise all weights from `generator` (no global random state)."""
        super().__init__()
        self.shape, self.config = shape, config
        self.most = shape.num_instance_values or shape.num_values
        width, hidden = config.channels, config.head_width
        num_variables = shape.num_cells * shape.num_values
        groups = shape.groups if config.update_map == "relational" else {}
        self.structure = GroupStructure(groups, num_variables)
        num_kinds = int(shape.action_kind.max()) + 1
        value = shape.action_value.long()
        cell = shape.action_cell.long()
        writes = (cell >= 0) & (value > 0)
        variable = torch.where(writes, cell * shape.num_values + value - 1, -1)
        write_action = torch.full((num_variables,), shape.num_actions, dtype=torch.long)
        write_action[variable[writes]] = writes.nonzero().flatten()
        tables = {
            "write_action": write_action,
            "action_variable": variable,
            "action_cell": cell,
            "action_kind": shape.action_kind.long(),
            "variable_cell": torch.arange(num_variables) // shape.num_values,
            "variable_value": torch.arange(num_variables) % shape.num_values + 1,
            "on_cell": (cell >= 0).nonzero().flatten(),
            "beside_values": ((cell >= 0) & ~writes).nonzero().flatten(),
            "overall": (cell < 0).nonzero().flatten(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.update: RelationalMap | MLPMap | NeighbourMap | MixerMap | AttentionMap
        if config.update_map == "relational":
            if not groups:
                raise ValueError(
                    "model.update_map 'relational' needs a domain with constraint groups"
                )
            tied = config.tied_groups
            inputs = 3 + 2 * self.structure.num_classes(tied)
            self.embed = GroupLinear(self.structure, inputs, width, tied=tied, generator=generator)
            self.inject = GroupLinear(self.structure, width, width, tied=tied, generator=generator)
            self.update = RelationalMap(self.structure, width, tied=tied, generator=generator)
            self.deeper = nn.ModuleList(
                GroupLinear(self.structure, width, width, tied=tied, gain=0.5, generator=generator)
                for _ in range(config.encoder_layers)
            )
            self.readout = GroupReadout(self.structure, width, tied=tied, generator=generator)
            pooled = 2 * width + self.readout.out_features
            self.value_hidden = _linear(pooled, hidden, generator)
            self.edit_hidden = _linear(width, hidden, generator)
            self.cell_hidden = _linear(width, hidden, generator, bias=False)
            self.pool_hidden = _linear(2 * width, hidden, generator, bias=False)
            self.edit_out = _linear(hidden, num_kinds, generator, gain=0.1)
        elif config.tied_groups:
            raise ValueError("model.tied_groups needs update_map 'relational'")
        elif config.encoder_layers:
            raise ValueError("model.encoder_layers needs update_map 'relational'")
        elif config.update_map == "mlp":
            plan_tokens = shape.num_cells * (shape.num_values + 1)
            tokens = plan_tokens + shape.num_cells * shape.instance_layers * (self.most + 1)
            self.embed_flat = _linear(tokens, width, generator, gain=(shape.num_values + 1) ** 0.5)
            self.update = MLPMap(width, generator=generator)
            self.value_hidden = _linear(width, hidden, generator)
            self.edit_hidden = _linear(width, hidden, generator)
            self.edit_out = _linear(hidden, shape.num_actions, generator, gain=0.1)
        else:
            self.reader = CellReader(
                num_cells=shape.num_cells,
                num_values=shape.num_values,
                instance_layers=shape.instance_layers,
                num_instance_values=self.most,
                action_cell=cell,
                width=width,
                places=config.update_map != "neighbour",
                generator=generator,
            )
            self.update = self._cell_map(generator)
            self.value_hidden = _linear(4 * width, hidden, generator)
            self.edit_hidden = _linear(width, hidden, generator)
            # Of every cell: for each kind of writes a logit for each value, then one for each kind.
            self.register_buffer("action_column", _columns(shape), persistent=False)
            kinds = len(shape.action_kind[writes].unique())
            outputs = kinds * shape.num_values + num_kinds
            self.edit_out = _linear(hidden, outputs, generator, gain=0.1)
            if len(self.overall):
                self.pool_hidden = _linear(4 * width, hidden, generator)
                self.pool_out = _linear(hidden, len(self.overall), generator, gain=0.1)
        self.value_out = _linear(hidden, 1, generator, gain=0.1)
        # Not bound to this model, so that a deep copy steps with its own weights.
        self._step: Step = TinyRecursiveModel.projected_step

    def _cell_map(self, generator: torch.Generator) -> NeighbourMap | MixerMap | AttentionMap:
        shape, config = self.shape, self.config
        if config.update_map == "neighbour":
            if shape.neighbours is None:
                raise ValueError("model.update_map 'neighbour' needs a domain with neighbours")
            return NeighbourMap(shape.neighbours, config.channels, generator=generator)
        if config.update_map == "mixer":
            return MixerMap(shape.num_cells, config.channels, generator=generator)
        return AttentionMap(
            shape.num_cells, config.channels, heads=_ATTENTION_HEADS, generator=generator
        )

    def encode(self, states: StateBatch) -> Encoding:
        """(x, y, mask) -> injection u; nothing here is limited by the contraction."""
        encoding = self._encode(states)
        if states.start is None:
            return encoding
        if encoding.variables is not None:
            start = states.start[encoding.variables.state, encoding.variables.variable]
        else:
            start = states.start.flatten(0, 1)
        return replace(encoding, start=start.to(encoding.injection.dtype))

    @property
    def num_places(self) -> int:
        """Latents of a state: one for each variable or cell, or one alone (the flat map)."""
        if self.config.update_map == "mlp":
            return 1
        variables = self.shape.num_values if self.config.update_map == "relational" else 1
        return self.shape.num_cells * variables

    def memory(
        self, z: Float[Tensor, "row channel"], encoding: Encoding
    ) -> Float[Tensor, "batch place channel"]:
        """The latents of a batch aligned by place, 0 for what takes no part; without gradient."""
        rows = z.detach()
        if encoding.variables is None:
            return rows.view(encoding.batch, self.num_places, -1)
        aligned = rows.new_zeros(encoding.batch, self.num_places, rows.shape[1])
        aligned[encoding.variables.state, encoding.variables.variable] = rows
        return aligned

    def take_trunk(self, other: "TinyRecursiveModel") -> None:
        """Take over the weights of a network of the same shape, except those of the edit head."""
        with torch.no_grad():
            for name, weight in other.named_parameters():
                if name.split(".")[0] not in _EDIT_HEAD:
                    self.get_parameter(name).copy_(weight)

    def _encode(self, states: StateBatch) -> Encoding:
        # Shapes are read by `.shape`: `len` would be a constant of an exported graph.
        batch = states.plan.shape[0]
        if self.config.update_map == "mlp":
            boards = ((states.instance, self.most), (states.plan, self.shape.num_values))
            one_hot = [
                nn.functional.one_hot(board.long(), most + 1).flatten(1) for board, most in boards
            ]
            flat = torch.cat(one_hot, dim=1).to(self.embed_flat.weight.dtype)
            return Encoding(injection=self.embed_flat(flat), batch=batch)
        if self.config.update_map != "relational":
            editable = self.reader.editable(states.mask)
            injection = self.reader(states.instance, states.plan, editable)
            return Encoding(injection=injection, batch=batch, editable=editable)
        padded = nn.functional.pad(states.mask, (0, 1))
        legal = padded[:, self.write_action].bool()
        active = legal
        value, cell = self.variable_value.to(states.plan.dtype), self.variable_cell
        if self.config.variables == "legal_and_plan":
            active = legal | (states.plan[:, cell] == value)
        variables = VariableBatch.select(self.structure, active)
        row_cell = cell[variables.variable]
        row_value = value[variables.variable]
        flags = torch.stack(
            [
                legal[variables.state, variables.variable],
                states.plan[variables.state, row_cell] == row_value,
                states.instance[variables.state, row_cell] == row_value,
            ],
            dim=1,
        ).to(self.embed.own.dtype)
        # How constrained a variable is: its share of each of its groups, 1 where it stands alone.
        shares = self.embed.over_classes(variables.shares())
        features = torch.cat([flags, shares], dim=1)
        hidden = self.embed(features, variables, rectify=True)
        for layer in self.deeper:
            hidden = hidden + layer(hidden, variables, rectify=True)
        state, set_cell = (states.plan > 0).nonzero(as_tuple=True)
        set_variable = set_cell * self.shape.num_values + states.plan[state, set_cell].long() - 1
        return Encoding(
            injection=self.inject(hidden, variables),
            variables=variables,
            placed=VariableBatch.of(self.structure, state, set_variable, batch=batch),
            batch=batch,
        )

    def step(
        self, z: Float[Tensor, "row channel"], encoding: Encoding
    ) -> Float[Tensor, "row channel"]:
        """One latent update f(z, u), before projection."""
        if isinstance(self.update, RelationalMap):
            out: Tensor = self.update(z, encoding.injection, encoding.variables)
        else:
            out = self.update(z, encoding.injection)
        return out

    def projected_step(
        self, z: Float[Tensor, "row channel"], encoding: Encoding
    ) -> Float[Tensor, "row channel"]:
        """One latent update Pi_R(f(z, u))."""
        if isinstance(self.update, RelationalMap):
            out: Tensor = self.update(
                z, encoding.injection, encoding.variables, radius=self.config.radius
            )
            return out
        return project_ball(self.step(z, encoding), self.config.radius)

    def compile_step(self, compiled: Callable[[Step], Step]) -> None:
        """Let `compiled` (a `Placement.compiled`) wrap the latent update that `recur` iterates."""
        self._step = compiled(TinyRecursiveModel.projected_step)

    def recur(
        self, encoding: Encoding, *, depth: int | None = None
    ) -> Float[Tensor, "row channel"]:
        """z^(n) from z^(0); `depth` overrides the recipe's n.

        Raises:
            ValueError: for a persistent latent whose states do not say where it starts.
        """
        return unroll(
            lambda z: self._step(self, z, encoding),
            self._start(encoding),
            depth=self.config.depth if depth is None else depth,
        )

    def _start(self, encoding: Encoding) -> Float[Tensor, "row channel"]:
        if encoding.start is not None:
            return encoding.start
        if self.config.latent == "persistent":
            raise ValueError(
                "model.latent 'persistent': a state alone does not say where its latent starts"
            )
        return torch.zeros_like(encoding.injection)

    def _pooled(
        self, z: Float[Tensor, "row channel"], variables: VariableBatch
    ) -> Float[Tensor, "batch feature"]:
        total = variables.state_sum(z) * (1.0 / self.shape.num_cells)
        return torch.cat([total, variables.state_max(z)], dim=1)

    def value(self, z: Float[Tensor, "row channel"], encoding: Encoding) -> Float[Tensor, " batch"]:
        """V_psi(z): one number a state; the learner decides whether it is a score or a logit."""
        pooled = z
        if encoding.variables is not None and encoding.placed is not None:
            read = self.readout(z, encoding.variables, encoding.placed)
            pooled = torch.cat([self._pooled(z, encoding.variables), read], dim=1)
        elif encoding.editable is not None:
            pooled = cell_pools(z, encoding.editable)
        out: Tensor = self.value_out(torch.relu(self.value_hidden(pooled)))
        return out.squeeze(1)

    def edit_logits(
        self, z: Float[Tensor, "row channel"], encoding: Encoding, states: StateBatch
    ) -> Float[Tensor, "batch action"]:
        """Masked logits of pi_phi: `ILLEGAL_LOGIT` where the mask forbids."""
        if encoding.variables is not None:
            logits = self._relational_logits(z, encoding.variables)
        elif encoding.editable is not None:
            logits = self._cell_logits(z, encoding.editable)
        else:
            logits = self.edit_out(torch.relu(self.edit_hidden(z)))
        return logits.masked_fill(states.mask == 0, ILLEGAL_LOGIT)

    def _cell_logits(
        self, z: Float[Tensor, "row channel"], editable: Bool[Tensor, "batch cell"]
    ) -> Float[Tensor, "batch action"]:
        """Edits of a cell read its latent, other edits the pool."""
        batch, shape = editable.shape[0], self.shape
        of_cell: Tensor = self.edit_out(torch.relu(self.edit_hidden(z)))
        logits = z.new_zeros(batch, shape.num_actions)
        place = (self.action_cell * of_cell.shape[1] + self.action_column)[self.on_cell]
        logits = logits.index_copy(1, self.on_cell, of_cell.view(batch, -1)[:, place])
        if len(self.overall):
            pooled = torch.relu(self.pool_hidden(cell_pools(z, editable)))
            logits = logits.index_copy(1, self.overall, self.pool_out(pooled))
        return logits

    def _relational_logits(
        self, z: Float[Tensor, "row channel"], variables: VariableBatch
    ) -> Float[Tensor, "batch action"]:
        """Writes read their variable, other edits of a cell its sum, global ones the pool."""
        shape, batch = self.shape, variables.batch
        cells = variables.state * shape.num_cells + self.variable_cell[variables.variable]
        (cell_sum,) = group_sums(z, cells[None], [batch * shape.num_cells])
        of_pool = self.pool_hidden(self._pooled(z, variables)) + self.edit_hidden.bias
        of_cell = self.cell_hidden(cell_sum)
        # No pooled features here: which write is best is a local matter, and what the pool says
        # shifts with the number of blanks.
        of_row = self.edit_hidden(z) + group_spread([of_cell], cells[None])
        row_logit = self.edit_out(torch.relu(of_row))
        logits: Tensor = row_logit.new_zeros(batch, shape.num_actions + 1)
        action = self.write_action[variables.variable]
        kind = self.action_kind[action.clamp_max(shape.num_actions - 1)]
        chosen = row_logit.gather(1, kind[:, None]).squeeze(1)
        logits = logits.index_put((variables.state, action), chosen)[:, :-1]
        if len(self.beside_values):
            index = self.beside_values
            hidden = of_cell.view(batch, shape.num_cells, -1) + of_pool[:, None]
            cell_logit = self.edit_out(torch.relu(hidden))
            logits = logits.index_copy(
                1, index, cell_logit[:, self.action_cell[index], self.action_kind[index]]
            )
        if len(self.overall):
            index = self.overall
            pool_logit = self.edit_out(torch.relu(of_pool))
            logits = logits.index_copy(1, index, pool_logit[:, self.action_kind[index]])
        return logits

    def forward(
        self, states: StateBatch, *, depth: int | None = None
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch action"]]:
        """Value and masked edit logits of a batch of states."""
        encoding = self.encode(states)
        z = self.recur(encoding, depth=depth)
        return self.value(z, encoding), self.edit_logits(z, encoding, states)
