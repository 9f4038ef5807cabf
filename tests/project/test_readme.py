"""What the pages show works: their Python runs, links lead somewhere, their commands exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from trm.experiments.cli import cli

REPO = Path(__file__).resolve().parents[2]
PAGES = [
    REPO / "README.md",
    REPO / "CONTRIBUTING.md",
    REPO / "results" / "README.md",
    REPO / "examples" / "README.md",
    *sorted((REPO / "docs").rglob("*.md")),
]


def _name(page: Path) -> str:
    return str(page.relative_to(REPO))


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def _commands() -> list[str]:
    """Every call of the command in README and in the pages, each once; SPEC and the like go."""
    pages = [page for page in PAGES if page.name != "CONTRIBUTING.md"]
    lines = [line for page in pages for block in _blocks(page, "sh") for line in block.splitlines()]
    calls = [re.sub(r"^(PYTHONPATH=\. |\.venv/bin/)", "", line) for line in lines]
    return sorted({line for line in calls if line.startswith("upi-trm ")})


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = _blocks(page, "python")
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)


def test_the_environments_of_the_first_tutorial_are_played_to_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tutorial = REPO / "docs" / "tutorials" / "first-ten-minutes.md"
    episode, batch = _blocks(tutorial, "python")
    assert episode in _blocks(REPO / "README.md", "python")
    played: dict[str, Any] = {}
    exec(episode, played)
    score, solved = capsys.readouterr().out.split()
    assert (float(score), solved) == (played["info"]["score"], str(played["info"]["solved"]))
    assert 0 < float(score) <= 81
    assert played["terminated"] or played["truncated"]
    ahead: dict[str, Any] = {}
    exec(batch, ahead)
    number, *words = capsys.readouterr().out.split()
    assert " ".join(words) == "legal edits of 1024 plans"
    assert int(number) == ahead["envs"].action_masks().sum() > 1024


@pytest.mark.parametrize("line", _commands())
def test_a_command_of_a_page_parses(line: str) -> None:
    command, name, words = _find(shlex.split(line, comments=True)[1:])
    with command.make_context(name, list(words), resilient_parsing=False) as context:
        given = [word for value in context.params.values() for word in _flat(value)]
    # Every word that is no option has become the value of a parameter.
    assert {word for word in words if not word.startswith("-")} <= set(map(str, given))


def _flat(value: object) -> list[object]:
    return list(value) if isinstance(value, tuple) else [value]


def _find(words: list[str]) -> tuple[click.Command, str, list[str]]:
    """The command that words name, through its groups, and what follows its name."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found is not None, name
        command = found
    return command, name, words


def _every(command: click.Command) -> Iterator[click.Command]:
    """A command and all below it, other learners' too."""
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _every(below)


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_between_our_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in _anchors(file), f"{target}#{anchor}"


def test_every_option_that_the_readme_names_exists() -> None:
    of_others = {"--index-url", "--torch-backend"}  # of pip and uv
    named = set(re.findall(r"(--[a-z][a-z-]+)", (REPO / "README.md").read_text()))
    known = {
        option
        for command in _every(cli)
        for parameter in command.params
        for option in parameter.opts
    }
    assert named - of_others <= known


def test_the_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text().split()) <= 1200
