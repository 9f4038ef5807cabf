"""A part of the fault suite; `make faults` runs the whole and writes the table of the page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trm import bounded

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_promise_holds_in_a_part_of_the_faults() -> None:
    script = [sys.executable, str(ROOT / "tests" / "support" / "fault_suite.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tried, held = _sums(done.stdout)
    # Fewer would mean that calls are not intercepted any more, or files not found.
    assert tried == held >= 300


def test_the_page_shows_a_whole_run_of_a_thousand_faults_in_which_all_promises_held() -> None:
    tried, held = _sums(PAGE)
    assert tried == held >= 1000
    rows = re.findall(r"^\| ([^*|]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, flags=re.MULTILINE)
    assert sum(int(row[1].replace(",", "")) for row in rows) == tried


@pytest.mark.parametrize("limit", bounded.LIMITS, ids=lambda limit: limit.kind)
def test_the_page_states_the_limit_of_every_reader(limit: bounded.Limit) -> None:
    count = "" if limit.count is None else f"{limit.count:,}"
    row = f"| {limit.kind} | {limit.size // bounded.MIB:,} MiB | {limit.depth or ''} | {count} |"
    assert row in PAGE


def _sums(text: str) -> tuple[int, int]:
    found = re.search(r"^\| \*\*all\*\* \| ([\d,]+) \| ([\d,]+) \|$", text, flags=re.MULTILINE)
    assert found is not None, text
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))
