"""`TokenModel`: TRM and its relatives on sequences of tokens, faithful to the official code.

A sequence of tokens is embedded behind a prefix that holds its puzzle's embedding; two latents z_H
and z_L recur on it (`recursion.recur_pair`); z_H is read out as one distribution a token and as a
halting logit (REFERENCE.md A). TRM with attention, TRM with mlp_t, HRM (two networks) and the
models of DIS are configurations. Input comes from a learner as integer tokens, output goes back as
logits and the next latents; nothing here knows a puzzle or a loss.

Where the data has constraint groups or neighbours, the update maps of the plan-editing learners
serve as networks under the same recursion and heads: `RelationalMap` on one latent a (position,
value) variable (`variable_tokens`), `NeighbourMap` on one latent a position.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trm.nn.blocks import GroupStructure, RelationalMap, VariableBatch, name_sets
from trm.nn.cells import NeighbourMap, SwiGLU, attend, linear, rms_norm, rotary_table
from trm.nn.recursion import Latents, PairUpdate, RecursionSchedule, project_ball, recur_pair
from trm.nn.variable_tokens import FIRST_VALUE, VariableTokens
from trm.ranges import check_at_least, check_positive

HALT_BIAS = -5.0
"""Bias of the halting head at the start, its weights are 0: every sequence goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenShape:
    """What a model must know of its data."""

    vocab_size: int
    """Tokens 0..vocab_size - 1."""
    num_positions: int
    """Tokens of a sequence, always all of them."""
    num_puzzles: int = 1
    """Puzzle identifiers 0..num_puzzles - 1."""
    groups: Mapping[str, Int[Tensor, " variable"]] = field(default_factory=dict)
    """Constraint groups as partitions of the (position, value) variables, name -> label; see
    `variable_tokens`."""
    neighbours: Int[Tensor, "position direction"] | None = None
    """Positions next to each position, -1 for none."""


@dataclass(frozen=True, kw_only=True)
class TokenModelConfig:
    """The `model` section of a supervised recipe."""

    mixing: Literal["attention", "mixer", "relational", "neighbour"] = "attention"
    """How places exchange what they know: self-attention (TRM-Att); a SwiGLU over the sequence
    (TRM-MLP, official: mlp_t); sums over the constraint groups, one place a (position, value)
    variable; or the maximum over the positions next to each one. The last two are the update maps
    of the plan-editing learners, without normalisation, and serve boards of every size."""
    positions: Literal["rotary", "learned", "none"] = "rotary"
    """How places are told apart: rotary angles inside attention, a table added to the embedding,
    or not at all, which is enough for the mixer."""
    networks: Literal["shared", "separate"] = "shared"
    """One network for both latents (TRM), or one each (HRM)."""
    width: int = 512
    """D: channels of a place."""
    layers: int = 2
    """Blocks of a network."""
    heads: int = 8
    """Heads of the attention."""
    expansion: float = 4.0
    """Inner width of the SwiGLUs over the channels: 2/3 of this many times D, rounded up to a
    multiple of `inner_multiple`; that of the mixer alike, over the places."""
    inner_multiple: int = 256
    """256 is the official code's; small models waste less with a smaller one."""
    prefix: int = 16
    """Places before the tokens."""
    puzzle_channels: int = 512
    """Numbers of a puzzle's embedding, which fill the prefix from its start; 0 = no embedding."""
    halting_head: bool = True
    """Two logits read from the first place: halt, and continue (HRM only)."""
    step_embedding: bool = False
    """Whether an embedding of the supervision step, an integer, is added to every place (DIS)."""
    tied_groups: tuple[Any, ...] = ()
    """relational: sets of kinds of groups that share weights, e.g. [[row, column]]."""
    radius: float | None = None
    """relational, neighbour: R of the ball that every place's latent is projected into after an
    update; null = none. The other networks normalise."""

    def __post_init__(self) -> None:
        """Check ranges and combinations."""
        object.__setattr__(self, "tied_groups", name_sets(self.tied_groups))
        check_positive(self, "model", "radius")
        if self.on_graph:
            for name, only in (("positions", "none"), ("prefix", 0), ("layers", 1)):
                if getattr(self, name) != only:
                    raise ValueError(
                        f"model.{name} must be {only!r} with mixing {self.mixing!r},"
                        f" got {getattr(self, name)!r}"
                    )
        elif self.radius is not None:
            raise ValueError("model.radius needs mixing 'relational' or 'neighbour'")
        if self.tied_groups and self.mixing != "relational":
            raise ValueError("model.tied_groups needs mixing 'relational'")
        check_at_least(self, "model", 1, "width", "layers", "heads", "inner_multiple")
        check_at_least(self, "model", 0, "prefix", "puzzle_channels")
        check_positive(self, "model", "expansion")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"model.width must be an even multiple of model.heads = {self.heads},"
                f" got {self.width}"
            )
        if self.puzzle_channels > self.prefix * self.width:
            raise ValueError(
                f"model.puzzle_channels must fit the prefix, {self.prefix} x {self.width} numbers,"
                f" got {self.puzzle_channels}"
            )
        if self.mixing == "mixer" and self.positions == "rotary":
            raise ValueError("model.positions 'rotary' needs mixing 'attention'")
        if self.halting_head and self.prefix == 0 and not self.on_graph:
            raise ValueError("model.halting_head reads the prefix, but model.prefix is 0")

    @property
    def on_graph(self) -> bool:
        """Whether places mix along the puzzle's own graph, so that weights fit every size of it."""
        return self.mixing in ("relational", "neighbour")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutput:
    """What one supervision step gives."""

    latents: Latents
    """Where the recursion stands now; the next step starts from `latents.detach()`."""
    logits: Float[Tensor, "batch position vocab"]
    halting: Float[Tensor, "batch two"] | None
    """Logits of halting and of continuing, float32; None without a halting head."""
    early_logits: tuple[Float[Tensor, "batch position vocab"], ...] = ()
    """Logits of `latents.early`."""


class TokenModel(nn.Module):
    """TRM, HRM or a DIS model; see the module's docstring.

    The puzzle table and the two initial latents are buffers: they are saved, but neither the dense
    optimiser nor a running average touches them.
    """

    puzzle_table: Tensor
    start_h: Tensor
    start_l: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(
        self,
        shape: TokenShape,
        config: TokenModelConfig,
        schedule: RecursionSchedule,
        *,
        generator: torch.Generator,
    ) -> None:
        """Draw all weights from `generator`, on the CPU."""
        super().__init__()
        self.shape, self.config, self.schedule = shape, config, schedule
        width = config.width
        places = config.prefix + shape.num_positions
        self.scale = math.sqrt(width)
        if config.mixing == "relational" and not shape.groups:
            raise ValueError("model.mixing 'relational' needs a domain with constraint groups")
        if config.mixing == "neighbour" and shape.neighbours is None:
            raise ValueError("model.mixing 'neighbour' needs a domain with neighbours")

        def table(rows: int) -> nn.Parameter:
            return nn.Parameter(truncated_normal((rows, width), generator) / self.scale)

        self.variables: VariableTokens | None = None
        if config.mixing == "relational":
            places = shape.num_positions * (shape.vocab_size - FIRST_VALUE)
            structure = GroupStructure(shape.groups, places)
            self.variables = VariableTokens(
                structure, shape.vocab_size, width, tied=config.tied_groups, generator=generator
            )
        else:
            self.token_table = table(shape.vocab_size)
        self.num_places = places
        self.position_table = table(places) if config.positions == "learned" else None
        # One row more than steps 0..N_sup, as in the authors' code.
        self.step_table = table(schedule.supervision + 2) if config.step_embedding else None
        self.net_l = self._network(generator)
        self.net_h = self._network(generator) if config.networks == "separate" else None
        if self.variables is None:
            self.readout = linear(
                width, shape.vocab_size, generator, bias=False, draw=truncated_normal
            )
        self.halt: nn.Linear | None = None
        if config.halting_head:
            self.halt = linear(2 * width if config.on_graph else width, 2, generator)
            nn.init.zeros_(self.halt.weight)
            nn.init.constant_(self.halt.bias, HALT_BIAS)
        self.register_buffer("puzzle_table", torch.zeros(shape.num_puzzles, config.puzzle_channels))
        for name in ("start_h", "start_l"):
            self.register_buffer(name, truncated_normal((width,), generator))
        tables = rotary_table(places, width // config.heads)
        for name, values in zip(("cosine", "sine"), tables, strict=True):
            self.register_buffer(name, values, persistent=False)
        self.recompute = False
        """Whether the backward pass computes activations again instead of keeping them."""
        self._run: Callable[..., Tensor] = _run

    def _network(self, generator: torch.Generator) -> "Network":
        config = self.config
        if self.variables is not None:
            return _RelationalNetwork(config, self.variables.structure, generator)
        if config.mixing == "neighbour":
            assert self.shape.neighbours is not None
            return _NeighbourNetwork(config, self.shape.neighbours, generator)
        return _Network(config, self.num_places, generator)

    @property
    def num_parameters(self) -> int:
        """Trainable parameters; the puzzle table is not among them, as in the papers' counts."""
        return sum(parameter.numel() for parameter in self.parameters())

    def start(self, batch: int) -> Latents:
        """The latents before the first step: the same at every place."""
        size = (batch, self.num_places, self.config.width)
        return Latents(z_h=self.start_h.expand(size), z_l=self.start_l.expand(size))

    def puzzle_rows(self, puzzle: Int[Tensor, " batch"]) -> Float[Tensor, "batch puzzle_channel"]:
        """A copy of the rows of the puzzle table, a leaf of its own: the gradient gathers in it."""
        return self.puzzle_table[puzzle].detach().clone().requires_grad_()

    def embed(
        self,
        inputs: Int[Tensor, "batch position"],
        puzzle_rows: Float[Tensor, "batch puzzle_channel"],
        *,
        step: int | None = None,
    ) -> Float[Tensor, "batch place channel"]:
        """The injection x of a sequence: prefix, then tokens, times sqrt(D).

        `step` counts supervision steps from 1; beyond N_sup it stays at N_sup.
        """
        config = self.config
        room = config.prefix * config.width - puzzle_rows.shape[1]
        prefix = nn.functional.pad(puzzle_rows, (0, room))
        prefix = prefix.view(len(inputs), config.prefix, config.width)
        x = torch.cat((prefix, nn.functional.embedding(inputs, self.token_table)), dim=1)
        if self.position_table is not None:
            x = math.sqrt(0.5) * (x + self.position_table)
        return self._with_step(x, step) * self.scale

    def _with_step(self, x: Tensor, step: int | None) -> Tensor:
        if self.step_table is None:
            return x
        if step is None or step < 1:
            raise ValueError(f"step must count from 1 with a step embedding, got {step}")
        return x + self.step_table[min(step, self.schedule.supervision)]

    def forward(
        self,
        latents: Latents,
        inputs: Int[Tensor, "batch position"],
        puzzle_rows: Float[Tensor, "batch puzzle_channel"],
        *,
        step: int | None = None,
    ) -> StepOutput:
        """One supervision step: T cycles of the recursion, then the heads."""
        variables, before = None, latents
        if self.variables is None:
            x = self.embed(inputs, puzzle_rows, step=step)
        else:
            variables = self.variables.open(inputs)
            x = self._with_step(self.variables.injection(variables)[None], step)
            before = _rows_of(latents, variables)
        after = recur_pair(
            before,
            x,
            update_l=self._update(self.net_l, variables),
            update_h=self._update(self.net_l if self.net_h is None else self.net_h, variables),
            schedule=self.schedule,
        )
        logits, *early = (self._logits(z_h, variables, inputs) for z_h in (after.z_h, *after.early))
        if variables is not None:
            after = _put_back(after, variables, into=latents)
        return StepOutput(
            latents=after,
            logits=logits,
            halting=self.read_halting(after),
            early_logits=tuple(early),
        )

    def read(
        self, latents: Latents, inputs: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch position vocab"]:
        """Token logits of z_H, prefix dropped."""
        if self.variables is None:
            return self._logits(latents.z_h, None, inputs)
        variables = self.variables.open(inputs)
        return self._logits(_rows_of(latents, variables).z_h, variables, inputs)

    def _logits(self, z_h: Tensor, variables: VariableBatch | None, inputs: Tensor) -> Tensor:
        if self.variables is not None and variables is not None:
            return self.variables.read(z_h[0], variables, inputs)
        out: Tensor = self.readout(z_h[:, self.config.prefix :])
        return out

    def read_halting(self, latents: Latents) -> Float[Tensor, "batch two"] | None:
        """Halting logits of z_H at the first place, on a graph of its mean and maximum; float32."""
        if self.halt is None:
            return None
        z_h = latents.z_h
        pooled = torch.cat((z_h.mean(1), z_h.amax(1)), 1) if self.config.on_graph else z_h[:, 0]
        out: Tensor = self.halt(pooled)
        return out.float()

    def compile_networks(
        self, compiled: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
    ) -> None:
        """Let `compiled` (a `Placement.compiled`) wrap the network that the recursion calls."""
        self._run = compiled(_run)

    def _update(self, network: "Network", variables: VariableBatch | None = None) -> PairUpdate:
        rotary = (self.cosine, self.sine) if self.config.positions == "rotary" else None
        context = rotary if variables is None else variables

        def update(z: Tensor, injection: Tensor) -> Tensor:
            if self.recompute and torch.is_grad_enabled():
                out: Tensor = checkpoint(
                    self._run, network, z, injection, context, use_reentrant=False
                )
                return out
            return self._run(network, z, injection, context)

        return update


Rotary = tuple[Tensor, Tensor] | None


def _run(
    network: "Network", z: Tensor, injection: Tensor, context: Rotary | VariableBatch
) -> Tensor:
    out: Tensor = network(z, injection, context)
    return out


def _rows_of(latents: Latents, variables: VariableBatch) -> Latents:
    """The latents of some variables, as the places of a single board."""
    z_h, z_l = (z[variables.state, variables.variable][None] for z in (latents.z_h, latents.z_l))
    return Latents(z_h=z_h, z_l=z_l)


def _put_back(rows: Latents, variables: VariableBatch, *, into: Latents) -> Latents:
    """Every variable's latent again; those that took no part keep theirs."""
    index = (variables.state, variables.variable)
    return Latents(
        z_h=into.z_h.index_put(index, rows.z_h[0].to(into.z_h.dtype)),
        z_l=into.z_l.index_put(index, rows.z_l[0].to(into.z_l.dtype)),
    )


class _Network(nn.Module):
    """f(z, u): blocks applied to z + u."""

    def __init__(self, config: TokenModelConfig, places: int, generator: torch.Generator) -> None:
        super().__init__()
        make = _AttentionBlock if config.mixing == "attention" else _MixerBlock
        self.blocks = nn.ModuleList(make(config, places, generator) for _ in range(config.layers))

    def forward(self, z: Tensor, injection: Tensor, rotary: Rotary) -> Tensor:
        hidden = z + injection
        for block in self.blocks:
            hidden = block(hidden, rotary)
        return hidden


class _RelationalNetwork(nn.Module):
    """f(z, u) = Pi_R(relu(W_z z + sum_g sqrt(k) W_g P_g z + u)) on the open variables of a batch.

    For a fixed u it is Lipschitz in z with the constant that `upi_trm.contraction` computes of
    `map`.
    """

    def __init__(
        self, config: TokenModelConfig, structure: GroupStructure, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.radius = config.radius
        self.map = RelationalMap(
            structure, config.width, tied=config.tied_groups, generator=generator
        )

    def forward(self, z: Tensor, injection: Tensor, variables: VariableBatch) -> Tensor:
        out: Tensor = self.map(z[0], injection[0], variables, radius=self.radius)
        return out[None]


class _NeighbourNetwork(nn.Module):
    """f(z, u) = Pi_R(relu(W_z z + W_m max_{neighbours} z + u)), one place a position."""

    def __init__(
        self, config: TokenModelConfig, neighbours: Tensor, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.radius = config.radius
        self.map = NeighbourMap(neighbours, config.width, generator=generator)

    def forward(self, z: Tensor, injection: Tensor, context: None) -> Tensor:
        out: Tensor = self.map(z.flatten(0, 1), injection.flatten(0, 1))
        return project_ball(out, self.radius).view_as(z)


Network = _Network | _RelationalNetwork | _NeighbourNetwork
"""f(z, u) of the recursion."""


class _AttentionBlock(nn.Module):
    """Post-norm: h = rms(h + attention(h)), then h = rms(h + SwiGLU(h))."""

    def __init__(self, config: TokenModelConfig, places: int, generator: torch.Generator) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = linear(width, 3 * width, generator, bias=False, draw=truncated_normal)
        self.out = linear(width, width, generator, bias=False, draw=truncated_normal)
        self.channels = _swiglu(width, config, generator)

    def forward(self, hidden: Tensor, rotary: Rotary) -> Tensor:
        mixed = attend(self.qkv(hidden), heads=self.heads, rotary=rotary)
        hidden = rms_norm(hidden + self.out(mixed))
        return rms_norm(hidden + self.channels(hidden))


class _MixerBlock(nn.Module):
    """The same with a SwiGLU over the places (official: mlp_t).

    Its norm too runs over the places, channel by channel, unlike that of `cells.MixerMap`.
    """

    def __init__(self, config: TokenModelConfig, places: int, generator: torch.Generator) -> None:
        super().__init__()
        self.places = _swiglu(places, config, generator)
        self.channels = _swiglu(config.width, config, generator)

    def forward(self, hidden: Tensor, rotary: Rotary) -> Tensor:
        assert rotary is None
        turned = hidden.transpose(1, 2)
        hidden = rms_norm(turned + self.places(turned)).transpose(1, 2)
        return rms_norm(hidden + self.channels(hidden))


def _swiglu(width: int, config: TokenModelConfig, generator: torch.Generator) -> SwiGLU:
    multiple = config.inner_multiple
    inner = math.ceil(round(config.expansion * width * 2 / 3) / multiple) * multiple
    return SwiGLU(width, inner=inner, generator=generator, draw=truncated_normal)


def truncated_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal values cut off at two standard deviations, then scaled to variance 1, as in JAX."""
    bound = math.erf(2 / math.sqrt(2))
    density = math.exp(-2.0) / math.sqrt(2 * math.pi)
    scale = 1 / math.sqrt(1 - 4 * density / bound)
    uniform = torch.rand(shape, generator=generator) * (2 * bound) - bound
    return (torch.erfinv(uniform) * (math.sqrt(2) * scale)).clamp_(-2 * scale, 2 * scale)
