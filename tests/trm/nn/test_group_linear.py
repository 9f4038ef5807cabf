"""The fused layer against dense matrices: values and gradients, any width, with empty states."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trm.nn import group_linear as module
from trm.nn.group_linear import GroupRows, group_linear

LABELS = torch.stack([torch.arange(12) // 3, torch.arange(12) % 3, torch.arange(12) % 4])
NUM_GROUPS = (4, 3, 4)
CLASSES = [0, 1, 0]
FINISHES: list[dict[str, Any]] = [
    {},
    {"rectify": True},
    {"radius": 1.5},
    {"rectify": True, "radius": 1.5},
]
finishes = pytest.mark.parametrize("finish", FINISHES, ids=str)
Case = tuple[Tensor, Tensor, Tensor, GroupRows, Tensor]


def case(seed: int, inputs: int, channels: int, *, states: int = 3, per_row: bool = True) -> Case:
    """Rows, b, weights, groups, and the state of each row; the second state is empty."""
    draws = torch.Generator().manual_seed(seed)
    present = torch.rand(states, 12, generator=draws) < 0.7
    present[1] = False
    state, variable = present.nonzero(as_tuple=True)
    of_group = torch.rand(3, 4, generator=draws, dtype=torch.float64)
    scale = torch.stack([of_group[kind, LABELS[kind]] for kind in range(3)])
    group = LABELS[:, variable] + torch.tensor(NUM_GROUPS)[:, None] * state
    groups = GroupRows(
        ends=present.sum(dim=1).cumsum(0),
        slots=(LABELS + torch.tensor([0, 4, 7])[:, None]).T.int()[variable],
        num_slots=sum(NUM_GROUPS),
        scale=scale.T.contiguous()[variable],
        group=group,
        num_groups=tuple(n * states for n in NUM_GROUPS),
    )

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    added = normal(len(state) if per_row else 1, channels)
    return normal(len(state), inputs), added, normal(3, inputs, channels), groups, state


def dense(
    rows: Tensor,
    added: Tensor,
    weight: Tensor,
    groups: GroupRows,
    *,
    rectify: bool = False,
    radius: float | None = None,
) -> Tensor:
    """The layer by one matrix a kind of group."""
    out = added + rows @ weight[0]
    for kind, used in enumerate(CLASSES):
        same = groups.group[kind, :, None] == groups.group[kind]
        out = out + groups.scale[:, kind, None] * (same.double() @ rows @ weight[used + 1])
    out = out.relu() if rectify else out
    if radius is None:
        return out
    return out * (radius / out.norm(dim=1, keepdim=True).clamp_min(radius))


@finishes
@given(
    seed=st.integers(0, 1000),
    inputs=st.integers(1, 17),
    channels=st.integers(1, 17),
    per_row=st.booleans(),
)
def test_values_and_gradients_are_those_of_dense_matrices(
    finish: dict[str, Any], seed: int, inputs: int, channels: int, per_row: bool
) -> None:
    *values, groups, _ = case(seed, inputs, channels, per_row=per_row)
    for value in values:
        value.requires_grad_()
    found = group_linear(*values, groups, classes=CLASSES, **finish)
    wanted = dense(*values, groups, **finish)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(wanted.shape, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, values, upstream),
        torch.autograd.grad(wanted, values, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@finishes
def test_float32_agrees_to_its_rounding(finish: dict[str, Any]) -> None:
    *values, groups, _ = case(0, 16, 16)
    single = [value.float() for value in values]
    found = group_linear(*single, groups, classes=CLASSES, **finish)
    assert found.dtype == torch.float32
    wanted = dense(*values, groups, **finish)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-6)


@finishes
def test_where_there_is_no_kernel_torch_computes_the_same(
    finish: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    *values, groups, _ = case(1, 8, 8)
    found = group_linear(*values, groups, classes=CLASSES, **finish)
    monkeypatch.setattr(module, "has_kernel", lambda _: False)
    torch.testing.assert_close(group_linear(*values, groups, classes=CLASSES, **finish), found)


def test_a_state_is_blind_to_the_others_of_its_batch() -> None:
    rows, added, weight, groups, state = case(2, 8, 8)
    before = group_linear(rows, added, weight, groups, classes=CLASSES)
    rows[state == 0] += 1.0
    after = group_linear(rows, added, weight, groups, classes=CLASSES)
    assert torch.equal(before[state == 2], after[state == 2])
    assert not torch.equal(before[state == 0], after[state == 0])


def test_no_rows_give_no_rows() -> None:
    rows, added, weight, _, _ = case(3, 8, 8, per_row=False)
    none = GroupRows(
        ends=torch.zeros(2, dtype=torch.long),
        slots=torch.zeros(0, 3, dtype=torch.int32),
        num_slots=sum(NUM_GROUPS),
        scale=torch.zeros(0, 3, dtype=torch.float64),
        group=torch.zeros(3, 0, dtype=torch.long),
        num_groups=(8, 6, 8),
    )
    rows.requires_grad_()
    added.requires_grad_()
    out = group_linear(rows[:0], added, weight, none, classes=CLASSES)
    assert out.shape == (0, 8)
    for gradient in torch.autograd.grad(out.sum(), (rows, added)):
        assert not gradient.any()


@finishes
def test_what_is_not_a_number_is_never_hidden(finish: dict[str, Any]) -> None:
    rows, added, weight, groups, _ = case(4, 5, 8)
    weight[0, 2, 3] = torch.nan
    out = group_linear(rows, added, weight, groups, classes=CLASSES, **finish)
    assert out[:, 3].isnan().all()
