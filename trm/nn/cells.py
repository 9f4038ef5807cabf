"""One latent a cell of a grid: update maps that mix cells, and how a plan is read into cells.

For domains whose constraints are not groups of equal variables: mazes, ARC canvases. `NeighbourMap`
passes messages between cells next to each other, `MixerMap` and `AttentionMap` between all cells
(the two token mixers of TRM, post-norm RMSNorm and SwiGLU). Input comes from `model.py` as integer
boards, output goes back to its heads; nothing here knows a puzzle.
"""

from collections.abc import Callable, Sequence
from typing import no_type_check

import numba
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trm.nn.group_ops import has_kernel, maxima

Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""Draws a tensor of independent values of mean 0 and variance 1."""


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal values."""
    return torch.randn(shape, generator=generator)


def linear(
    inputs: int,
    outputs: int,
    generator: torch.Generator,
    *,
    gain: float = 1.0,
    bias: bool = True,
    draw: Draw = normal,
) -> nn.Linear:
    """nn.Linear with weights of variance gain^2 / inputs from `generator` and zero bias."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(draw((outputs, inputs), generator) * (gain * inputs**-0.5))
        if bias:
            layer.bias.zero_()
    return layer


class CellReader(nn.Module):
    """(x, y, mask) -> injection u: every cell reads what its boards show and what may be edited.

    A cell's input is a sum of embeddings: one for its value in the plan, one for its value on each
    board of the instance, one for whether some legal edit writes it, and its place where the update
    map cannot tell places apart.
    """

    offsets: Tensor
    writers: Tensor
    written: Tensor

    def __init__(
        self,
        *,
        num_cells: int,
        num_values: int,
        instance_layers: int,
        num_instance_values: int,
        action_cell: Int[Tensor, " action"],
        width: int,
        places: bool,
        generator: torch.Generator,
    ) -> None:
        """`width` = channels of u; `places` gives each cell an embedding of its own."""
        super().__init__()
        self.num_cells, self.instance_layers = num_cells, instance_layers
        sizes = [num_values + 1, 2, *[num_instance_values + 1] * instance_layers]
        starts = torch.tensor([0, *sizes]).cumsum(0)
        self.register_buffer("offsets", starts[:-1], persistent=False)
        edits = action_cell >= 0
        self.register_buffer("writers", edits.nonzero().flatten(), persistent=False)
        self.register_buffer("written", action_cell[edits].long(), persistent=False)
        scale = len(sizes) ** -0.5
        self.embed = nn.Parameter(torch.randn(int(starts[-1]), width, generator=generator) * scale)
        self.place = (
            nn.Parameter(torch.randn(num_cells, width, generator=generator) * 0.5)
            if places
            else None
        )
        self.hidden = linear(width, width, generator)
        self.inject = linear(width, width, generator)

    def editable(self, mask: Int[Tensor, "batch action"]) -> Bool[Tensor, "batch cell"]:
        """The cells that some legal edit writes."""
        count = torch.zeros(mask.shape[0], self.num_cells, device=mask.device)
        legal = mask[:, self.writers].to(count.dtype)
        return count.index_add_(1, self.written, legal) > 0

    def forward(
        self,
        instance: Int[Tensor, "batch observed"],
        plan: Int[Tensor, "batch cell"],
        editable: Bool[Tensor, "batch cell"],
    ) -> Float[Tensor, "row channel"]:
        """The injection, one row a cell."""
        batch = plan.shape[0]
        boards = instance.view(batch, self.instance_layers, self.num_cells).transpose(1, 2)
        seen = torch.cat([plan[:, :, None].long(), editable[:, :, None].long(), boards.long()], 2)
        index = (seen + self.offsets).flatten(0, 1)
        if torch.compiler.is_exporting():  # ONNX has no bags, and makes loops of them
            features = self.embed[index].sum(dim=1)
        else:
            features = nn.functional.embedding_bag(index, self.embed, mode="sum")
        if self.place is not None:
            features = features + self.place.repeat(batch, 1)
        out: Tensor = self.inject(torch.relu(self.hidden(torch.relu(features))))
        return out


class NeighbourMap(nn.Module):
    """z <- relu(W_z z + W_m max_{neighbours} z + u): one step of a wave through the grid.

    The maximum lets a front pass at full height whatever the number of neighbours, as in dynamic
    programming over distances. n unrolls reach n cells far. The same weights serve every cell.
    """

    neighbours: Tensor
    heard_by: Tensor

    def __init__(
        self,
        neighbours: Int[Tensor, "cell direction"],
        channels: int,
        *,
        gain: float = 0.5,
        generator: torch.Generator,
    ) -> None:
        """`neighbours`: index of the cells next to each cell, -1 for none, none of them twice."""
        super().__init__()
        table = neighbours.long()
        present = table >= 0
        cells = len(table)
        listener = torch.arange(cells)[:, None].expand_as(table)[present]
        pairs = torch.zeros(cells, cells, dtype=torch.bool)
        pairs[listener, table[present]] = True
        if int(pairs.sum()) != len(listener):
            raise ValueError("neighbours: a cell is listed twice next to another one")
        self.register_buffer("neighbours", table, persistent=False)
        self.register_buffer("heard_by", pairs.sum(dim=0).float(), persistent=False)
        scale = gain * channels**-0.5
        self.own = nn.Parameter(torch.randn(channels, channels, generator=generator) * scale)
        self.message = nn.Parameter(torch.randn(channels, channels, generator=generator) * scale)

    def forward(
        self, z: Float[Tensor, "row channel"], injection: Float[Tensor, "row channel"]
    ) -> Float[Tensor, "row channel"]:
        """One latent update."""
        heard = neighbour_max(z, self.neighbours)
        return torch.relu(torch.addmm(torch.addmm(injection, z, self.own), heard, self.message))


class MixerMap(nn.Module):
    """z <- f(z + u): TRM's mlp_t over the cells, then SwiGLU, each added and RMS-normalised."""

    def __init__(self, num_cells: int, channels: int, *, generator: torch.Generator) -> None:
        """`num_cells` tokens of `channels`."""
        super().__init__()
        self.num_cells = num_cells
        self.tokens = SwiGLU(num_cells, generator=generator)
        self.channels = SwiGLU(channels, generator=generator)

    def forward(
        self, z: Float[Tensor, "row channel"], injection: Float[Tensor, "row channel"]
    ) -> Float[Tensor, "row channel"]:
        """One latent update."""
        hidden = (z + injection).view(-1, self.num_cells, z.shape[1])
        hidden = rms_norm(hidden + self.tokens(hidden.transpose(1, 2)).transpose(1, 2))
        return rms_norm(hidden + self.channels(hidden)).flatten(0, 1)


class AttentionMap(nn.Module):
    """z <- f(z + u): self-attention over the cells, then SwiGLU, each added and RMS-normalised."""

    def __init__(
        self, num_cells: int, channels: int, *, heads: int, generator: torch.Generator
    ) -> None:
        """`channels` must be a multiple of `heads`."""
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels must be a multiple of {heads} heads, got {channels}")
        self.num_cells, self.heads = num_cells, heads
        self.qkv = linear(channels, 3 * channels, generator, bias=False)
        self.out = linear(channels, channels, generator, bias=False)
        self.channels = SwiGLU(channels, generator=generator)

    def forward(
        self, z: Float[Tensor, "row channel"], injection: Float[Tensor, "row channel"]
    ) -> Float[Tensor, "row channel"]:
        """One latent update."""
        hidden = (z + injection).view(-1, self.num_cells, z.shape[1])
        hidden = rms_norm(hidden + self.out(attend(self.qkv(hidden), heads=self.heads)))
        return rms_norm(hidden + self.channels(hidden)).flatten(0, 1)


def attend(
    qkv: Float[Tensor, "batch place three_channels"],
    *,
    heads: int,
    rotary: tuple[Float[Tensor, "place head"], Float[Tensor, "place head"]] | None = None,
) -> Float[Tensor, "batch place channel"]:
    """Self-attention of every place to every place, no mask.

    Args:
        qkv: queries, keys and values one after the other, each `heads` x head size.
        heads: number of heads.
        rotary: cosines and sines of the rotary position encoding (`rotary_table`), None for none.
    """
    batch, places = qkv.shape[:2]
    query, key, value = qkv.view(batch, places, 3, heads, -1).permute(2, 0, 3, 1, 4)
    if rotary is not None:
        query, key = (_rotate(part, *rotary) for part in (query, key))
    mixed = nn.functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2)


def rotary_table(
    places: int, head: int, *, base: float = 10_000.0
) -> tuple[Float[Tensor, "place head"], Float[Tensor, "place head"]]:
    """Cosines and sines of place / base^(2k / head), written twice: channel k pairs k + head/2."""
    frequency = 1 / base ** (torch.arange(0, head, 2, dtype=torch.float32) / head)
    angle = torch.outer(torch.arange(places, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of channels by its place's angle, in float32."""
    first, second = x.chunk(2, dim=-1)
    turned = x * cosine + torch.cat((-second, first), dim=-1) * sine
    return turned.to(x.dtype)


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) * W_up x) over the last axis, by default 4/3 times as wide inside."""

    def __init__(
        self,
        width: int,
        *,
        inner: int | None = None,
        generator: torch.Generator,
        draw: Draw = normal,
    ) -> None:
        """`width` of input and output, `inner` between."""
        super().__init__()
        inner = max(8, 4 * width // 3) if inner is None else inner
        self.up = linear(width, 2 * inner, generator, bias=False, draw=draw)
        self.down = linear(inner, width, generator, bias=False, draw=draw)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Same shape as the input."""
        gate, up = self.up(x).chunk(2, dim=-1)
        out: Tensor = self.down(nn.functional.silu(gate) * up)
        return out


def rms_norm(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Each row divided by sqrt(mean of its squares + eps), without gain."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-5)


def cell_pools(
    z: Float[Tensor, "row channel"], editable: Bool[Tensor, "batch cell"]
) -> Float[Tensor, "batch feature"]:
    """Mean and maximum over all cells, and over the editable ones (0 where there is none)."""
    cells = z.view(*editable.shape, -1)
    weight = editable[:, :, None].to(z.dtype)
    number = weight.sum(dim=1).clamp_min(1.0)
    masked = cells.masked_fill(~editable[:, :, None], float("-inf")).amax(dim=1)
    parts: Sequence[Tensor] = (
        cells.mean(dim=1),
        cells.amax(dim=1),
        (cells * weight).sum(dim=1) / number,
        masked.masked_fill(~editable.any(dim=1, keepdim=True), 0.0),
    )
    return torch.cat(tuple(parts), dim=1)


def neighbour_max(
    rows: Float[Tensor, "row channel"], neighbours: Int[Tensor, "cell direction"]
) -> Float[Tensor, "row channel"]:
    """For each cell the maximum over its neighbours, channel by channel; 0 without neighbours.

    Differentiable; the gradient of a tie goes to the first. `rows` holds the cells of one state
    after another.
    """
    if has_kernel(rows):
        return maxima(_neighbour_kernel, rows, neighbours, len(rows))
    cells = rows.view(-1, neighbours.shape[0], rows.shape[1])
    gathered = cells[:, neighbours.clamp_min(0)]
    absent = (neighbours < 0)[None, :, :, None]
    out = gathered.masked_fill(absent, float("-inf")).amax(dim=2)
    return out.masked_fill(absent.all(dim=2), 0.0).flatten(0, 1)


@numba.njit(cache=True)
@no_type_check
def _neighbour_kernel(rows, neighbours, out, source):
    cells, directions = neighbours.shape
    channels = rows.shape[1]
    for t in range(len(rows)):
        cell = t % cells
        first = t - cell
        for d in range(directions):
            if neighbours[cell, d] >= 0:
                other = first + neighbours[cell, d]
                for c in range(channels):
                    if source[t, c] < 0 or rows[other, c] > out[t, c]:
                        out[t, c] = rows[other, c]
                        source[t, c] = other
