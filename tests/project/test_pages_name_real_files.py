"""What the pages name exists: files, folders, modules, and the file of every idea."""

import importlib
import importlib.util
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
GUIDE = REPO / "CONTRIBUTING.md"
RECORDS = REPO / "results" / "README.md"
PAGES = [REPO / "README.md", GUIDE, RECORDS, *sorted((REPO / "docs").rglob("*.md"))]
CONFIGS = [*sorted((REPO / "configs").rglob("*.yaml")), REPO / "Makefile"]
PACKAGES = ("plan_envs", "trm", "upi_trm", "baselines", "supervised")
FOLDERS = (*PACKAGES, "benchmarks", "configs", "docs", "results", "tests", "tools", ".ci")
GROUPS = {group for group in entry_points().groups if group.startswith("upi_trm.")}


def _words(text: str) -> Iterator[str]:
    """The words of inline code and of commands, without the punctuation around them."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.split()
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", outside):
        yield from (word.strip("(),;:") for word in code.split())


def _paths(page: Path) -> list[str]:
    """Paths that end in .py or begin with a folder of ours; `<placeholders>` are left out."""
    words = {word.split("::")[0] for word in _words(page.read_text(encoding="utf-8"))}
    words = {word for word in words if "/" in word}
    ours = {word for word in words if word.endswith(".py") or word.split("/")[0] in FOLDERS}
    return sorted(word for word in ours if not re.search(r"[<>{}]|\.\.\.", word))


def _dotted(page: Path) -> list[str]:
    """Modules of ours, and what they hold, as dotted names; imports in code that is shown too."""
    text = page.read_text(encoding="utf-8")
    words = set(_words(text))
    for module, names in re.findall(r"^from (\S+) import (.+)$", text, re.MULTILINE):
        words |= {f"{module}.{name.strip()}" for name in names.split(",")}
    pattern = rf"(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+"
    found = {word for word in words if re.fullmatch(pattern, word) and word not in GROUPS}
    return sorted(word for word in found if not word.endswith((".json", ".yaml", ".md")))


def _ideas() -> list[tuple[str, str]]:
    """Idea and file of every row of the table in CONTRIBUTING.md."""
    section = GUIDE.read_text(encoding="utf-8").split("## Where each idea lives\n")[1]
    rows = re.findall(r"^\| (.+) \| (.*) \|$", section.split("\n## ")[0], re.MULTILINE)
    return [(idea, file.strip("`")) for idea, file in rows[1:] if not idea.startswith("**")]


def _exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in the longest module that it begins with."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if _is_module(name):
            found: object = importlib.import_module(name) if length < len(parts) else None
            for part in parts[length:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


def _is_module(name: str) -> bool:
    file = REPO / name.replace(".", "/")
    return file.is_dir() or file.with_suffix(".py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_a_path_that_a_page_names_exists(page: Path) -> None:
    missing = [path for path in _paths(page) if not any(REPO.glob(path))]
    assert missing == []


def test_a_page_or_record_that_a_recipe_names_exists() -> None:
    for file in CONFIGS:
        comments = re.findall(r"#(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        named = re.findall(r"\b(?:results|docs|tests|benchmarks)/[\w./*-]+\w", "\n".join(comments))
        assert [name for name in named if not any(REPO.glob(name))] == [], file.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_a_module_that_a_page_names_exists(page: Path) -> None:
    assert [name for name in _dotted(page) if not _exists(name)] == []


def test_the_file_of_every_idea_exists() -> None:
    ideas = _ideas()
    assert len(ideas) >= 30
    assert [idea for idea, _ in ideas] == list(dict.fromkeys(idea for idea, _ in ideas))
    assert [row for row in ideas if not (REPO / row[1]).is_file()] == []


def test_the_file_and_the_test_of_every_equation_exist() -> None:
    text = (REPO / "docs" / "reference" / "equations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (.+) \| `(.+)` \| `(.+)::(.+)` \|$", text, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| .*`.*\|$", text, re.MULTILINE)) >= 25
    for _, _, file, suite, test in rows:
        assert (REPO / file).is_file(), file
        assert f"def {test}(" in (REPO / suite).read_text(encoding="utf-8"), test


def test_a_missing_path_and_a_missing_name_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`trm/nn/gone.py` and `trm.nn.model.gone`, `upi_trm.learners`, `runs/x.json`\n")
    assert _paths(page) == ["trm/nn/gone.py"]
    assert _dotted(page) == ["trm.nn.model.gone"]
    assert not _exists("trm.nn.model.gone")
    assert _exists("trm.nn.model.TinyRecursiveModel")
