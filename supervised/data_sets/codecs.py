"""Puzzles as tokens and back: what each id means, which symmetries hold, and the checker's verdict.

The ids are those of the TRM reference code (REFERENCE.md, section B): 0 is padding everywhere. A
codec turns `plan_envs` boards into tokens for `datasets`, and predicted tokens into plans that the
domain's own checker judges; it has no rules of its own. `arc` has the tokens of ARC.

| domain | positions | vocabulary | tokens |
|---|---|---|---|
| Sudoku | side * side | side + 2 | 1 = blank, digit + 1 |
| N-Queens | n * n | 3 | 1 = empty, 2 = queen |
| Maze | size * size | 6 | 1 wall, 2 free, 3 start, 4 goal, 5 path |
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int8, Integer, UInt8

from plan_envs.domain import Symmetry
from plan_envs.maze.kernels import FREE, GOAL, START, WALL
from plan_envs.maze.rules import Maze
from plan_envs.queens.rules import Queens
from plan_envs.sudoku.rules import Sudoku

Boards = Int8[np.ndarray, "batch cell"]
"""Instances, plans and solutions of `plan_envs`."""
Tokens = UInt8[np.ndarray, "batch position"]
"""Token ids as they are stored."""
AnyTokens = Integer[np.ndarray, "batch position"]
"""Token ids of any integer type, as models predict them."""

PAD: Final = 0
"""The id of padding: as an input "nothing here", as a label "not supervised"."""


@dataclass(frozen=True)
class ValueCodec:
    """Sudoku and N-Queens: a token is a cell's value + 1; a label is the whole completed board.

    `encode` gives inputs and labels of instances and their solutions, `decode` the instances and
    the plans that predicted tokens mean. Tokens that mean no value of a plan (padding, say) become
    blanks, so that the checker always has an answer. Under a `random_symmetry` the image of a
    label solves the image of its input.
    """

    domain: Sudoku | Queens

    @property
    def vocab_size(self) -> int:
        """Padding, blank and the values."""
        return self.domain.spec.num_values + 2

    def encode(self, instances: Boards, solutions: Boards) -> tuple[Tokens, Tokens]:
        """Board + 1."""
        return _shifted(instances), _shifted(solutions)

    def decode(self, inputs: AnyTokens, predicted: AnyTokens) -> tuple[Boards, Boards]:
        """Token - 1; padding reads as blank."""
        return _unshifted(inputs), _unshifted(predicted)

    def random_symmetry(self, rng: np.random.Generator) -> Symmetry:
        """A random symmetry of the rules.

        Sudoku permutes digits, bands, stacks, rows and columns, and transposes where boxes are
        square; N-Queens takes one of the eight symmetries of the board.
        """
        if isinstance(self.domain, Queens):
            return self.domain.symmetry(int(rng.integers(8)))
        return self.domain.random_symmetry(rng)

    def transform(self, symmetry: Symmetry, tokens: Tokens) -> Tokens:
        """Blank stays blank."""
        return _shifted(symmetry.plans(_unshifted(tokens)))


_TOKEN_OF_CELL: Final = np.array([2, 1, 3, 4], np.uint8)
"""Instance value (free, wall, start, goal) -> token."""
_CELL_OF_TOKEN: Final = np.array([WALL, WALL, FREE, START, GOAL, FREE], np.int8)
"""Token -> instance value; padding reads as a wall, the path as free."""
_PATH: Final = 5


@dataclass(frozen=True)
class MazeCodec:
    """A label is the whole maze with 5 on the cells between start and goal, as the public set's.

    What is judged is the path alone: the cells predicted as 5 must be free cells of the input, and
    exactly those of one path from start to goal that does not touch itself. Only exact match and
    token accuracy look at what the prediction says of walls.
    """

    domain: Maze

    @property
    def vocab_size(self) -> int:
        """Padding, wall, free, start, goal, path."""
        return 6

    def encode(self, instances: Boards, solutions: Boards) -> tuple[Tokens, Tokens]:
        """Solutions are paths as plans (see `Maze`), whose directions the tokens leave out."""
        inputs = _TOKEN_OF_CELL[instances]
        between = (np.asarray(solutions) > 0) & (np.asarray(instances) == FREE)
        return inputs, np.where(between, _PATH, inputs).astype(np.uint8)

    def decode(self, inputs: AnyTokens, predicted: AnyTokens) -> tuple[Boards, Boards]:
        """The path that the marked cells are, or the path's mere beginning if they are none."""
        instances = _CELL_OF_TOKEN[np.asarray(inputs)]
        marked = np.asarray(predicted) == _PATH
        # Unmarked cells become walls: a path through the rest that uses all of it is the only one.
        narrow = np.where((instances == FREE) & ~marked, WALL, instances).astype(np.int8)
        plans, edits = self.domain.label_paths(narrow)
        off_path = (marked & (instances != FREE)).any(axis=1)
        path = (edits == marked.sum(axis=1) + 1) & ~off_path
        return instances, np.where(path[:, None], plans, self.domain.initial(instances))

    def random_symmetry(self, rng: np.random.Generator) -> Symmetry:
        """One of the eight symmetries of the square."""
        return self.domain.random_symmetry(rng)

    def transform(self, symmetry: Symmetry, tokens: Tokens) -> Tokens:
        """Cells move, tokens stay; the label's tie-break among shortest paths does not hold."""
        return symmetry.instances(tokens.view(np.int8)).view(np.uint8)


BoardCodec = ValueCodec | MazeCodec
"""Tokens of a domain whose puzzles are one board each."""

_FAMILIES: Final[Mapping[str, Callable[[int], BoardCodec]]] = {
    "sudoku": lambda side: ValueCodec(Sudoku(side)),
    "queens": lambda n: ValueCodec(Queens(n)),
    "maze": lambda size: MazeCodec(Maze(size)),
}


def codec_of(domain: str) -> BoardCodec:
    """The codec of a domain by its name, `DomainSpec.name`, such as "sudoku9x9".

    Raises:
        ValueError: for a name that is none.
    """
    found = re.fullmatch(r"([a-z]+)(\d+)x\2", domain)
    if found is None or found[1] not in _FAMILIES:
        raise ValueError(
            f"domain must be {', '.join(f'{name}NxN' for name in _FAMILIES)} or arc, got {domain!r}"
        )
    return _FAMILIES[found[1]](int(found[2]))


def _shifted(boards: Boards) -> Tokens:
    return (np.asarray(boards) + 1).astype(np.uint8)


def _unshifted(tokens: AnyTokens) -> Boards:
    return np.maximum(np.asarray(tokens).astype(np.int8) - 1, 0).astype(np.int8)
