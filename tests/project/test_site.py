"""The site of mkdocs.yml: every page has its place and its purpose, and nothing comes from afar."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trm.experiments.shipped_runs import pretrained_names

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
NAVIGATION = (REPO / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]


def module_of(name: str) -> ModuleType:
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_every_page_stands_in_the_navigation_once_or_is_a_card_of_a_run() -> None:
    listed = re.findall(r"([\w/.-]+\.md)$", NAVIGATION, re.MULTILINE)
    cards = [f"models/{name}.md" for name in pretrained_names()]
    assert sorted([*listed, *cards]) == PAGES


def test_the_navigation_has_four_parts() -> None:
    parts = re.findall(r"^  - ([\w -]+):$", NAVIGATION, re.MULTILINE)
    assert parts == ["Tutorials", "How-to", "Reference", "Lab notes"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_at_once_what_its_reader_can_do(page: str) -> None:
    blocks = (DOCS / page).read_text(encoding="utf-8").split("\n\n")
    assert blocks[0].startswith("# ") and "\n" not in blocks[0].strip()
    first = next(block for block in blocks[1:] if not block.startswith("<!--"))
    assert re.search(r"\byou\b|^Read here", first), first


def test_the_page_on_recipes_has_every_recipe() -> None:
    page = (DOCS / "how-to" / "choose-a-recipe.md").read_text(encoding="utf-8")
    shipped = {file.stem for file in (REPO / "configs" / "upi").glob("*.yaml")}
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == shipped


def test_the_task_of_the_tutorial_deals_each_row_to_one_split(tmp_path: Path) -> None:
    page = (DOCS / "tutorials" / "own-csv.md").read_text(encoding="utf-8")
    make_csv, module = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "make_csv.py").write_text(make_csv)
    (tmp_path / "my_sudoku.py").write_text(module)
    count = (
        "import runpy; runpy.run_path('make_csv.py'); import my_sudoku as mine; "
        "print([len(mine.my_instances(split=s)) for s in mine.SPLITS], mine.rules.spec.name)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", count],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{REPO}:{tmp_path}"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[314, 39, 47] sudoku4x4"
    shown = re.search(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert shown is not None and (tmp_path / "mine.csv").read_text().startswith(shown[1])


@pytest.mark.parametrize(
    ("place", "written", "turned"),
    [
        ("results.md", "[a](../results/x.json)", "[a](repository/results/x.json)"),
        ("lab/studies.md", "[a](../../results/x.json)", "[a](../repository/results/x.json)"),
        ("lab/studies.md", "[a](../results.md#speed)", "[a](../results.md#speed)"),
        ("results.md", "[a](../results)", "[a](repository/results/README.md)"),
        ("repository/README.md", "![a](docs/pictures/a.png)", "![a](../pictures/a.png)"),
        ("repository/README.md", "[a](CHANGELOG.md)", "[a](CHANGELOG.md)"),
        ("results.md", "[a](https://x.org/../b) [b](#here)", "[a](https://x.org/../b) [b](#here)"),
    ],
)
def test_a_link_that_leaves_the_docs_leads_to_its_copy(
    place: str, written: str, turned: str
) -> None:
    pytest.importorskip("mkdocs", reason="the site needs the extra docs")
    assert module_of("site_links").turned(written, place) == turned


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the site needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link\b[^>]*rel=\"?stylesheet[^>]*href=\"?([^\" >]+)", text)
        assert [source for source in loaded if "//" in source] == [], page.name
    api = (tmp_path / "reference" / "python-api.html").read_text(encoding="utf-8")
    assert all(name in api for name in ("PlanEditVectorEnv", "edit_values", "register_task"))


def test_figures_label_their_lines_and_need_no_legend() -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra plot")
    figures = module_of("draw_figures")
    for name, make in figures.FIGURES.items():
        assert (DOCS / "pictures" / f"{name}.png").stat().st_size < 60_000
        (axes,) = make().axes
        assert axes.get_legend() is None and len(axes.texts) >= 3, name
