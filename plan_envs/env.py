"""The Gymnasium environment of one plan, over an engine with a fast step of its own."""

import operator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from plan_envs import episodes
from plan_envs.catalogue import Task
from plan_envs.checks import read_only
from plan_envs.domain import DeadEnd, Int8Array, RewardKind
from plan_envs.engine import StepArrays
from plan_envs.episodes import Illegal, Observation, PlanEditing
from plan_envs.instances import InstanceSet

_ONLY = np.zeros(1, np.int64)
"""The index of the only environment."""


class PlanEditEnv(PlanEditing, gym.Env[Any, Any]):
    """Edit a plan until a checker accepts it.

    ## Description

    A plan-editing MDP (UPI-TRM Sec. 2): the instance x is given and never changes, the plan y
    starts as the instance, each step edits one cell of y, and a checker scores the result. For
    Sudoku the plan is a partly filled board and an edit writes a digit; `task` chooses the puzzle.

    ## Action Space

    `Discrete(num_actions)`; which action means what is the domain's (for Sudoku see
    `plan_envs.sudoku.rules.Sudoku`; `env.unwrapped.task.domain.spec` has it as tables). In 9x9
    Sudoku an action is cell * 9 + digit - 1, 729 in all; in 4x4 it is cell * 6 + token (0 PAD, 1
    blank, digit + 1), and STOP = 96.

    An illegal action leaves the plan unchanged, costs one step and sets `info["illegal_action"]`;
    with `illegal="raise"` it raises `ValueError` instead. A number out of range always raises.

    ## Observation Space

    `Dict` of int8 vectors: `instance` and `plan` (0 = blank, else the value), `action_mask` (1 =
    legal). Arrays are fresh each step; with `copy=False` they are read-only views that later steps
    change. A mask always has a 1: where an episode ends without a legal edit, it is all ones.

    ## Rewards

    r = r0 + gamma Phi(s') - Phi(s) with r0 = 1 on entering a solved plan, else 0, and Phi =
    clip(score, 0, max_score) / max_score. On absorption the paper's gamma V(s_abs) = -gamma C_max
    is already folded in: the last reward is r0 - Phi(s), and learners bootstrap absorption with 0.
    `reward="sparse"` gives r0 alone. Sudoku's score: filled cells - 2 x violations (unordered pairs
    of equal digits in a row, column or box) - 5 x blank cells without a candidate.

    ## Starting State

    An instance drawn uniformly from the pool, with the plan equal to its givens. Each environment
    draws from its own stream, seeded by `reset(seed=...)`; later resets continue the stream.

    ## Episode End

    - Termination: the plan is solved; STOP (where the edit set has it); no legal edit is left; the
      plan is dead (fill edits: a blank cell without candidate, or a violation) unless
      `dead_end="continue"`.
    - Truncation: the horizon, 16 edits for 4x4 and side x side otherwise. `gymnasium.make` adds the
      limit; an environment that is built directly has none unless `max_episode_steps` is given.

    Stepping an environment that has ended raises `gymnasium.error.ResetNeeded`.

    ## Information

    `reset` and `step` return the same keys: `action_mask` (the same array as in the observation),
    `score` (float, in points), `solved` (bool), `violations` (int), `illegal_action` (bool).

    ## Arguments

    ```python
    gym.make("PlanEdit/Sudoku9x9-v0", reward="sparse", givens=(30, 32))
    env.reset(seed=1, options={"instance": "530070000600195000098000060800060003..."})
    ```

    - `task`: a task's name, environment id or `Task`; the ids set it.
    - `instances`: an `InstanceSet` to draw from; default: the task's shared pool of `split`.
    - `split`: "train", "validation" or "test".
    - `gamma`: discount of the shaping.
    - `reward`: "shaped" or "sparse".
    - `dead_end`: "absorb", or "continue" until no legal edit is left (the paper's protocol).
    - `illegal`: "noop" or "raise".
    - `copy`: False returns read-only views that later steps change.
    - `max_episode_steps`: truncate after this many steps; None or -1 = no limit of its own.
    - further options go to the task: for Sudoku `codec`, `edits`, `mask`, `side`, `givens`,
      `blanks`, `unique`.

    `reset(options={"instance": ...})` chooses the instance: an array of cells or a puzzle's text;
    `"plan"` beside it chooses the plan to start from.

    ## Version History

    - v0: first version.
    """

    metadata: dict[str, Any] = episodes.RENDER

    def __init__(
        self,
        task: str | Task = "sudoku9x9",
        *,
        instances: InstanceSet | None = None,
        split: str = "train",
        gamma: float = 0.99,
        reward: RewardKind = "shaped",
        dead_end: DeadEnd = "absorb",
        illegal: Illegal = "noop",
        copy: bool = True,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        """See the class docstring, Arguments."""
        PlanEditing.__init__(
            self,
            task,
            1,
            instances=instances,
            split=split,
            illegal=illegal,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            gamma=gamma,
            reward=reward,
            dead_end=dead_end,
            **options,
        )
        spec = self.task.domain.spec
        self.observation_space = episodes.observation_space(spec)
        self.action_space = spaces.Discrete(spec.num_actions)
        self._copy = copy
        self._window: _Window | None = None
        self._state = StepArrays.empty(1, spec)
        self._bind()

    def _bind(self) -> None:
        """Take the engine's live boards and its step function, to save look-ups in `step`."""
        engine = self._engine
        self._instance = read_only(engine.instances[0, : self.task.domain.spec.observed_size])
        self._plan = read_only(engine.plans[0])
        self._mask: Int8Array = read_only(engine.masks[0])
        self._live = {"instance": self._instance, "plan": self._plan, "action_mask": self._mask}
        self._step_one = engine.step_one

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what `_bind` and `render` make anew."""
        bound = {"_instance", "_plan", "_mask", "_live", "_step_one"}
        state = {name: value for name, value in vars(self).items() if name not in bound}
        return {**state, "_window": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        vars(self).update(state)
        self._bind()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start on an instance of the pool, or on `options["instance"]`, at `options["plan"]`."""
        start = self._read_start(options)
        super().reset(seed=seed)
        if seed is not None or not self._seeded[0]:
            self._seed_streams(0, self.np_random)
        if start is None:
            self._engine.draw(_ONLY)
        else:
            self._engine.load(_ONLY, *start)
        if self.render_mode == "human":
            self.render()
        return self._observe()

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Make one edit."""
        try:
            reward, terminated, truncated, code, score, violations, solved = self._step_one(
                operator.index(action)
            )
        except (TypeError, OverflowError) as error:
            raise episodes.step_error(action, error) from None
        if code > 1:
            raise episodes.error_of(code - 1, action, "")
        if self._copy:
            mask = self._mask.copy()
            observation = {
                "instance": self._instance.copy(),
                "plan": self._plan.copy(),
                "action_mask": mask,
            }
        else:
            mask = self._mask
            observation = self._live.copy()
        if self.render_mode == "human":
            self.render()
        return (
            observation,
            reward,
            terminated,
            truncated,
            {
                "action_mask": mask,
                "score": score,
                "solved": solved,
                "violations": violations,
                "illegal_action": code == 1,
            },
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """The mask of the current observation as bool [action] (what MaskablePPO asks for)."""
        masks: NDArray[np.bool_] = self._mask.copy().view(np.bool_)
        return masks

    def sample_legal(self, rng: np.random.Generator | None = None) -> int:
        """Draw a legal action uniformly, from the environment's own stream unless `rng` is given.

        Raises:
            ResetNeeded: if the episode has ended or not begun.
        """
        action = int(self._sample(rng)[0])
        if action < 0:
            raise ResetNeeded("the episode has ended or not begun: call reset()")
        return action

    def render(self) -> Any:
        """The plan as text, image or in a window, as `render_mode` says."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render_mode, e.g. gym.make(id, render_mode='ansi')")
            return None
        frame = episodes.render_plan(self.task.domain, self.render_mode, self._instance, self._plan)
        if self.render_mode != "human":
            return frame
        if self._window is None:
            self._window = _Window(self.task.name, fps=self.metadata["render_fps"])
        self._window.show(frame)
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def _read_start(self, options: dict[str, Any] | None) -> tuple[Int8Array, Int8Array] | None:
        """Instance and plan to start from, [1, ...] each; None = draw from the pool."""
        chosen, plan = episodes.start_options(options)
        if chosen is None:
            return None
        domain = self.task.domain
        board = episodes.read_instance(domain, chosen, self.engine_options.dead_end)[None]
        if plan is None:
            return board, domain.initial(board)
        start = episodes.read_plans(domain, plan, (domain.spec.num_cells,))[None]
        episodes.check_starts(domain, board, start)
        return board, start

    def _observe(self) -> tuple[Observation, dict[str, Any]]:
        self._engine.observe(self._state)
        observation = self._live.copy()
        if self._copy:
            observation = {name: board.copy() for name, board in self._live.items()}
        return observation, {
            "action_mask": observation["action_mask"],
            "score": float(self._state.score[0]),
            "solved": bool(self._state.solved[0]),
            "violations": int(self._state.violations[0]),
            "illegal_action": False,
        }


class _Window:
    """A pygame window that shows frames at a given rate."""

    def __init__(self, title: str, *, fps: int) -> None:
        import pygame

        self._pygame: Any = pygame
        self._fps, self._title = fps, title
        self._screen: Any = None
        self._clock = pygame.time.Clock()

    def show(self, frame: NDArray[np.uint8]) -> None:
        pygame = self._pygame
        if self._screen is None:
            pygame.display.init()
            pygame.display.set_caption(self._title)
            self._screen = pygame.display.set_mode((frame.shape[1], frame.shape[0]))
        surface = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._screen.blit(surface, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        if self._screen is not None:
            self._pygame.display.quit()
            self._screen = None
