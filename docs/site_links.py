"""The hook of mkdocs.yml that lets a page of docs/ link to other files of the repository.

On GitHub `../results/sudoku4x4.json` is a file beside docs/. The site has no such place, so the
hook copies README.md, results/ and the like below repository/ of the site, and turns every link
that leaves docs/, or comes from there, accordingly. One link then works in both places.
"""

import posixpath
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

REPO: Final = Path(__file__).resolve().parents[1]
OUTSIDE: Final = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "mkdocs.yml"),
    *("results/*", "examples/*.*", "configs/*/*.yaml"),
)
"""Files outside docs/ that pages may link to, as patterns below the repository."""
_LINK: Final = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ to the site; they stand in no navigation."""
    for pattern in OUTSIDE:
        for path in sorted(REPO.glob(pattern)):
            place = site_path(path.relative_to(REPO).as_posix())
            files.append(
                File.generated(
                    config, place, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV
                )
            )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page, except in blocks of code."""
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else turned(part, page.file.src_uri) for part in parts
    )


def turned(markdown: str, place: str) -> str:
    """`markdown` of the page at `place` of the site, with its links as the site needs them."""
    inside = place.removeprefix("repository/")
    source = inside if inside != place else f"docs/{place}"

    def turn(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if (REPO / target / "README.md").is_file():
            target = f"{target}/README.md"
        return posixpath.relpath(site_path(target), posixpath.dirname(place) or ".")

    return _LINK.sub(turn, markdown)


def site_path(path: str) -> str:
    """Where the site has a file of the repository: docs/ is its root."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"
