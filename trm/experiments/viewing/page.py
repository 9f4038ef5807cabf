"""One self-contained page from data: style sheet, scripts and replays are inside it.

Input: what `report.py` gathered and `replay.py` packed. Output: the HTML of `page.html.j2`, which
loads nothing from anywhere; its content security policy forbids it to.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trm.experiments.viewing.replay import Styles

_FOLDER = Path(__file__).resolve().parent
_COURSES = {
    True: "The chance to solve it, as the model sees it",
    False: "How sure the model is that it is done",
}


def page_html(
    *,
    title: str,
    purpose: str,
    runs: Sequence[Mapping[str, Any]],
    styles: Styles,
    facts: Sequence[Mapping[str, Any]] = (),
    curves: Sequence[Mapping[str, Any]] = (),
    tables: Sequence[Mapping[str, Any]] = (),
    studies: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page.

    Args:
        title: its heading.
        purpose: its first sentence, which says what its reader can do with it.
        runs: of `replay.run_data`, with their replays.
        styles: the table that the replays' cells refer to.
        facts: name, method, env, seed, trained, begun and commit of each run.
        curves: options of `lineChart` in charts.js, with title and note.
        tables: title, note, scored, and rows with name, rate, low, high, learned, score and
            improvement.
        studies: of `studies.study_tables`.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    replays = [replay for run in runs for replay in run["replays"]]
    data = {"styles": styles.to_json(), "runs": list(runs), "curves": list(curves)}
    return environment.get_template("page.html.j2").render(
        title=title,
        purpose=purpose,
        facts=facts,
        curves=curves,
        tables=tables,
        studies=studies,
        has_replays=bool(replays),
        single=len(runs) == 1,
        course=_COURSES[all(run["plays"] for run in runs)],
        data=_script_json(data),
        css=_text("page.css"),
        charts_js=_text("charts.js"),
        replay_js=_text("replay.js"),
    )


def _text(name: str) -> Markup:
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _script_json(data: Any) -> Markup:
    """JSON that can stand in a script element: no text of it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))
