"""A solved puzzle as data for the page: what is drawn after each edit, and what the model thought.

Input: a `Model` and an instance. Output: JSON values that `page.py` puts into a page and
`replay.js` draws. A run that plays edits is shown edit by edit with its probabilities, edit values
and the deepening of its recursion; a supervised run step by step with entropies and halting. A
quantity that a run does not have is left out. Arrays are packed as base64, little-endian, so that
fifty replays of 9x9 Sudoku stay below 5 MB.
"""

import base64
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from plan_envs.domain import Int8Array, PlanDomain, potential
from plan_envs.rendering import (
    BLANK_INK,
    CONFLICT_INK,
    CONFLICT_PAPER,
    EDIT_INK,
    GIVEN_INK,
    GIVEN_PAPER,
    PAPER,
    Picture,
    picture_of,
)
from trm.experiments.states import Boards
from trm.experiments.trained.model import Model, Solution
from trm.experiments.viewing.edits import edit_name

MOST_EDITS: Final = 256
"""Legal edits of a state that are shown, the most probable ones."""
TOP_EDITS: Final = 5
"""Edits of a state whose probability is shown by depth."""
DEPTH: Final = 16
"""Updates of the latent that are shown; more where the run was trained with more."""
VALUE_SCALE: Final = 10_000
"""Edit values are stored as int16 after this factor."""

_Style = tuple[tuple[int, ...], tuple[int, ...], bool]
"""Ink, paper, bold."""

_NAMED: Final[dict[tuple[tuple[int, ...], tuple[int, ...]], str]] = {
    (BLANK_INK, PAPER): "blank",
    (GIVEN_INK, GIVEN_PAPER): "given",
    (EDIT_INK, PAPER): "edit",
    (CONFLICT_INK, CONFLICT_PAPER): "conflict",
    (GIVEN_INK, CONFLICT_PAPER): "given conflict",
}
"""Colours that the page has its own light and dark ones for; others are drawn as they are."""


class Styles:
    """The table of cell styles that all replays of a page share."""

    def __init__(self) -> None:
        self._index: dict[_Style, int] = {}

    def number(self, style: _Style) -> int:
        """The place of a style in the table."""
        return self._index.setdefault(style, len(self._index))

    def to_json(self) -> list[dict[str, Any]]:
        """A class of the page's style sheet, or colours."""
        return [
            {"name": _NAMED[ink, paper], "bold": bold}
            if (ink, paper) in _NAMED
            else {"ink": _hex(ink), "paper": _hex(paper), "bold": bold}
            for ink, paper, bold in self._index
        ]


def run_data(model: Model) -> dict[str, Any]:
    """What all replays of a run share: names, and what each action edits."""
    spec = model.domain.spec
    return {
        "name": model.name,
        "method": model.method,
        "env": model.run.info.env,
        "plays": model.predictor is None,
        "grid": list(spec.grid_shape),
        "edits": [edit_name(spec, action) for action in range(spec.num_actions)],
        "cell": spec.action_cell.tolist(),
        "value": spec.action_value.tolist(),
        "values": spec.num_values,
        "symbols": spec.symbols,
        "max_score": spec.max_score,
        "value_scale": VALUE_SCALE,
        "replays": [],
    }


def replay_data(model: Model, instance: Int8Array, title: str, styles: Styles) -> dict[str, Any]:
    """One puzzle solved by a model, as the page shows it.

    Args:
        model: a run of any learner.
        instance: shape [instance].
        title: what the page calls the puzzle.
        styles: the page's table, which grows.
    """
    return solution_data(model, model.solve(instance), title, styles)


def solution_data(model: Model, solution: Solution, title: str, styles: Styles) -> dict[str, Any]:
    """What a model made of a puzzle; arguments as of `replay_data`."""
    frames = _frames(model.domain, solution, title, styles)
    if model.predictor is None:
        return {**frames, **_thoughts(model, solution)}
    found = model.predictor.predict(solution.instance[None])
    entropy = found.entropy[:, 0] / np.log(2)
    doubts = {"entropy": _packed(np.round(np.clip(entropy, 0, 8) * 31), np.uint8)}
    if found.halting is None:
        return {**frames, **doubts}
    return {**frames, **doubts, "halting": _rounded(found.halting[:, 0])}


def _frames(domain: PlanDomain, solution: Solution, title: str, styles: Styles) -> dict[str, Any]:
    """The pictures as differences, with score and violations."""
    plans = solution.plans
    verdict = domain.check(np.repeat(solution.instance[None], len(plans), axis=0), plans)
    pictures = [picture_of(domain, solution.instance, plan) for plan in plans]
    frames: list[dict[str, Any]] = []
    before: tuple[list[Any], list[Any]] | None = None
    for place, picture in enumerate(pictures):
        cells, rules = _cells(picture, styles), _rules(picture)
        changed = [
            [index, *cell]
            for index, cell in enumerate(cells)
            if before is None or cell != before[0][index]
        ]
        frame: dict[str, Any] = {
            "cells": changed,
            "score": float(verdict.score[place]),
            "violations": int(verdict.violations[place]),
        }
        if before is None or rules != before[1]:
            frame["rules"] = rules
        if place and solution.edits is not None:
            frame["edit"] = solution.edits[place - 1]
        frames.append(frame)
        before = cells, rules
    return {
        "title": title,
        "solved": solution.solved,
        "reason": solution.reason,
        "shape": list(pictures[0].symbols.shape),
        "origin": list(pictures[0].origin),
        "frames": frames,
    }


def _thoughts(model: Model, solution: Solution) -> dict[str, Any]:
    """What the model said before each edit, as far as the run has it."""
    acted = slice(0, len(solution.plans) - 1)
    has = model.insight.quantities
    if not has or acted.stop == 0:
        return {}
    boards = model.boards(solution.instance, solution.plans[acted])
    chance = model.probabilities(boards.instances, boards.plans) if "probabilities" in has else None
    q = model.edit_values(boards.instances, boards.plans) if "edit_values" in has else None
    # A potential-based shaping takes Phi(s) off the values: with it they are returns of r0 alone.
    score = model.domain.check(boards.instances, boards.plans).score
    phi = potential(score, model.domain.spec.max_score)
    found: dict[str, Any] = {
        "legal": _legal(model, boards, chance, None if q is None else q + phi[:, None])
    }
    if "values" in has:
        found["values"] = _rounded(model.values(boards.instances, boards.plans) + phi)
    if "deepen" in has:
        found["deep"] = _deep(model, boards, phi)
    return found


def _legal(
    model: Model,
    boards: Boards,
    chance: NDArray[np.float32] | None,
    q: NDArray[np.float64] | None,
) -> list[dict[str, Any]]:
    """Legal edits of every state, best first, with what is known of them."""
    masks = model.domain.action_mask(boards.instances, boards.plans)
    order = q if chance is None else chance
    states = []
    for row, mask in enumerate(masks):
        legal = np.flatnonzero(mask)
        count = len(legal)
        if order is not None:
            legal = legal[np.argsort(-order[row, legal], kind="stable")]
        legal = legal[:MOST_EDITS]
        state: dict[str, Any] = {"num": count, "edits": _packed(legal, np.uint16)}
        if chance is not None:
            state["chance"] = _packed(np.round(chance[row, legal] * 65535), np.uint16)
        if q is not None:
            scaled = np.clip(np.round(q[row, legal] * VALUE_SCALE), -32767, 32767)
            state["q"] = _packed(scaled, np.int16)
        states.append(state)
    return states


def _deep(model: Model, boards: Boards, phi: NDArray[np.float64]) -> dict[str, Any]:
    """Values, moves and the chances of the leading edits by depth; arrays start with the state."""
    deep = model.deepen(boards.instances, boards.plans, depth=DEPTH)
    if deep.trained_depth > DEPTH:
        deep = model.deepen(boards.instances, boards.plans, depth=deep.trained_depth)
    leading = np.argsort(-deep.probabilities.max(axis=0), axis=1, kind="stable")[:, :TOP_EDITS]
    chance = np.take_along_axis(deep.probabilities, leading[None], axis=2)
    return {
        "depth": len(deep.moves),
        "trained": deep.trained_depth,
        "modulus": deep.modulus,
        "top": leading.shape[1],
        "values": _packed((deep.values + phi).T, np.float32),
        "moves": _packed(deep.moves.T, np.float32),
        "leading": _packed(leading, np.uint16),
        "chance": _packed(np.round(chance.transpose(1, 2, 0) * 65535), np.uint16),
    }


def _cells(picture: Picture, styles: Styles) -> list[list[Any]]:
    """Symbol and style of every cell, row by row."""
    size = picture.symbols.size
    ink, paper = (colours.reshape(size, 3).tolist() for colours in (picture.ink, picture.paper))
    bold = picture.bold.reshape(size).tolist()
    symbols = [symbol.strip(" .") for symbol in picture.symbols.reshape(size).tolist()]
    return [
        [symbol, styles.number((tuple(one), tuple(other), thick))]
        for symbol, one, other, thick in zip(symbols, ink, paper, bold, strict=True)
    ]


def _rules(picture: Picture) -> list[list[int]]:
    """Cells with a thick line below, and cells with one at their right."""
    return [np.flatnonzero(rule).tolist() for rule in (picture.rule_below, picture.rule_right)]


def _packed(array: NDArray[Any], kind: type[np.generic]) -> str:
    """The numbers as base64, little-endian."""
    flat = np.ascontiguousarray(array, np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(flat.tobytes()).decode()


def _rounded(array: NDArray[Any]) -> list[float]:
    return [round(float(value), 4) for value in array]


def _hex(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)
