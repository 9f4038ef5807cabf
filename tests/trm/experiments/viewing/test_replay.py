"""What a replay holds, the page around it, GIFs, and frames in the terminal."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plan_envs.domain import potential
from plan_envs.rendering import picture_of
from trm.experiments.trained.model import Model, Solution, load
from trm.experiments.viewing.edits import edit_name
from trm.experiments.viewing.film import frames_of, save_gif, show
from trm.experiments.viewing.page import page_html
from trm.experiments.viewing.replay import Styles, replay_data, run_data, solution_data
from trm.experiments.viewing.report import report_html, solution_html


@pytest.fixture(scope="module")
def model() -> Model:
    return load("pretrained:sudoku4x4", threads=1)


@pytest.fixture(scope="module")
def solution(model: Model) -> Solution:
    return model.solve(model.unseen(1)[0])


@pytest.fixture(scope="module")
def replay(model: Model, solution: Solution) -> dict[str, Any]:
    return solution_data(model, solution, "one", Styles())


def _unpacked(text: str, kind: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), kind)


def test_the_differences_of_a_replay_add_up_to_the_pictures(
    model: Model, solution: Solution, replay: dict[str, Any]
) -> None:
    shown = np.full(16, "?", dtype="<U1")
    for frame, plan in zip(replay["frames"], solution.plans, strict=True):
        for index, symbol, _ in frame["cells"]:
            shown[index] = symbol
        picture = picture_of(model.domain, solution.instance, plan)
        expected = [symbol.strip(" .") for symbol in picture.symbols.ravel().tolist()]
        assert shown.tolist() == expected


def test_a_replay_holds_what_the_model_says_of_every_plan_that_was_edited(
    model: Model, solution: Solution, replay: dict[str, Any]
) -> None:
    plans = solution.plans[:-1]
    chance = model.probabilities(solution.instance, plans)
    values = model.values(solution.instance, plans)
    assert len(replay["legal"]) == len(plans) == len(replay["values"])
    for place, legal in enumerate(replay["legal"]):
        edits = _unpacked(legal["edits"], "<u2")
        assert legal["num"] == len(edits) and edits[0] == chance[place].argmax()
        shown = _unpacked(legal["chance"], "<u2") / 65535
        np.testing.assert_allclose(shown, chance[place, edits], atol=1e-5)
    deep = replay["deep"]
    by_depth = _unpacked(deep["values"], "<f4").reshape(len(plans), -1)
    np.testing.assert_allclose(by_depth[:, deep["trained"]], replay["values"], atol=1e-3)
    # Returns of the reward for solving alone, from which the shaping took Phi(s) off.
    boards = model.boards(solution.instance, plans)
    score = model.domain.check(boards.instances, boards.plans).score
    phi = potential(score, model.domain.spec.max_score)
    np.testing.assert_allclose(replay["values"], values + phi, atol=1e-4)


def test_fifty_replays_of_9x9_fit_into_five_megabytes() -> None:
    """Measured on two puzzles: what each adds, fifty times, and the page around them."""
    model = load("pretrained:sudoku9x9", threads=1)
    instances = model.unseen(2)

    def size(num: int) -> int:
        styles, run = Styles(), run_data(model)
        run["replays"] += [replay_data(model, one, "puzzle", styles) for one in instances[:num]]
        return len(page_html(title="t", purpose="p", runs=[run], styles=styles).encode())

    assert size(0) + 50 * max(size(1) - size(0), size(2) - size(1)) < 5_000_000


def test_the_page_of_a_solution_is_whole_and_loads_nothing(
    model: Model, solution: Solution
) -> None:
    page = solution_html(model, solution)
    assert not re.findall(r"https?://|<link|src=|@import|url\(", page)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    found = json.loads(data[1])
    assert found["runs"][0]["name"] == "pretrained:sudoku4x4"
    assert len(found["runs"][0]["replays"][0]["frames"]) == len(solution.plans)


def test_names_cannot_end_a_script_or_add_elements(model: Model) -> None:
    run = run_data(model) | {"name": "</script><b>x"}
    page = page_html(title="<b>t</b>", purpose="p", runs=[run], styles=Styles())
    assert "<b>" not in page and page.count("</script>") == 3


def test_a_report_has_the_recorded_figures_and_a_replay_of_each_puzzle() -> None:
    model = load("pretrained:sudoku4x4-hard", threads=1)
    record = json.loads((model.run.path / "eval.json").read_text())
    lines: list[str] = []
    page = report_html([model], replays=2, announce=lines.append)
    assert f"{record['success_rate']:.1%}" in page and "fewest-candidates" in page
    assert page.count('"title":"unseen puzzle') == 2
    assert lines == ["solving 2 puzzles with pretrained:sudoku4x4-hard"]
    assert record["commit"]["commit"][:10] in page


def test_a_gif_shows_every_plan(solution: Solution, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pygame")
    save_gif(solution, tmp_path / "a.gif", size=96)
    with image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == len(solution.plans) and film.size == (96, 96)


def test_where_there_is_no_terminal_all_plans_are_printed_with_their_edits(
    model: Model, solution: Solution, capsys: pytest.CaptureFixture[str]
) -> None:
    show(solution, color=False)
    out = capsys.readouterr().out
    assert solution.edits is not None
    for place, edit in enumerate(solution.edits, start=1):
        name = edit_name(model.domain.spec, edit)
        assert f"{place} of {len(solution.edits)}: {name}\n" in out
    assert out.count("of") == len(list(frames_of(solution, color=False)))
