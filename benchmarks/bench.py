"""All speed benchmarks in one go, as ratios: `make bench`, or `python benchmarks/bench.py`.

Each script runs in a process of its own and hands over its JSON. What comes out are ratios of two
times of one run, which another machine or a busy one moves far less than times. For each of them
`results/bench.json` keeps the last one measured, with commit, versions and machine; it is written
after every script, so that a run that is stopped has kept what it measured. A ratio that is more
than 20% worse than the one kept before is flagged, and the exit status is then 1. Ctrl-C ends it.

    python benchmarks/bench.py [--quick] [--only SCRIPT] [--record FILE]
"""

import argparse
import json
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trm.compute.process import provenance
from trm.runs.durable import replace_durably

HERE = Path(__file__).parent
RECORD = HERE.parent / "results" / "bench.json"
FALL = 0.2
"""Loss of speed that is flagged."""

Ratios = Iterator[tuple[str, float, bool]]
"""Name, ratio, and whether more is faster."""


def of_environments(document: dict[str, Any]) -> Ratios:
    """Times of the null environment, and times as fast as other suites."""
    for record in document["records"]:
        if record["times_null"] != 1.0:
            yield f"{record['name']}, x null environment", record["times_null"], False
    for race in document["races"]:
        yield f"{race['ours']} against {race['theirs']}", race["times_as_fast"], True


def of_adapter(document: dict[str, Any]) -> Ratios:
    """Times cheaper than `DummyVecEnv`."""
    for record in document["records"]:
        if record["times_cheaper"] is not None:
            yield f"SB3: {record['name']}, against DummyVecEnv", record["times_cheaper"], True


def of_map(document: dict[str, Any]) -> Ratios:
    """Times as fast as torch operations."""
    for record in document["records"]:
        name = f"relational map, {record['name']}, {record['states']} states, against torch"
        yield name, record["times_as_fast"], True


def of_supervision(document: dict[str, Any]) -> Ratios:
    """Share of the matrix products in a step, and of recomputed memory."""
    yield "supervision step, share of its products", document["float32"]["share"], True
    peaks = document["peak_mb"]
    yield "supervision step, memory recomputed", peaks["recomputed"] / peaks["kept"], False


@dataclass(frozen=True, kw_only=True)
class Script:
    """A benchmark of this folder that writes `--json FILE`."""

    name: str
    ratios: Callable[[dict[str, Any]], Ratios]
    whole: tuple[str, ...] = ()
    """Arguments of a whole run."""
    quick: tuple[str, ...] = ("--quick",)
    """Arguments of a rough one."""


SCRIPTS = (
    Script(name="relational_map", ratios=of_map),
    Script(name="sb3_adapter", ratios=of_adapter),
    Script(
        name="supervision_step",
        ratios=of_supervision,
        whole=("trm-nqueens",),
        quick=("trm-nqueens", "--batch", "4", "--rounds", "1"),
    ),
    Script(name="environments", ratios=of_environments),
)
"""The longest last. The other files here are studies, or parts of these."""


def run(script: Script, arguments: tuple[str, ...]) -> tuple[dict[str, Any], bool]:
    """What a script wrote, and whether it was stopped before it was through.

    Raises:
        CalledProcessError: it failed, or was stopped before it had measured anything.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "document.json"
        command = [sys.executable, str(HERE / f"{script.name}.py"), *arguments, "--json", str(file)]
        # In a session of its own, so that a Ctrl-C reaches it once: from here.
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        stopped = False
        try:
            process.wait()
        except KeyboardInterrupt:
            stopped = True
            process.send_signal(signal.SIGINT)
            process.wait()
        if not file.exists():
            raise subprocess.CalledProcessError(process.returncode, command)
        return json.loads(file.read_text()), stopped


def loss(before: float, after: float, *, more_is_faster: bool) -> float:
    """Share of the speed that is gone; negative where it is faster now."""
    return 1 - (after / before if more_is_faster else before / after)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 where a ratio has fallen or a script failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a rough look; keeps no record")
    parser.add_argument("--only", choices=[script.name for script in SCRIPTS], metavar="SCRIPT")
    parser.add_argument("--record", type=Path, default=RECORD, help="default results/bench.json")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kept: dict[str, Any] = json.loads(options.record.read_text()) if options.record.exists() else {}
    console = Console(width=max(110, Console().width))
    fallen, failed = 0, False
    for script in SCRIPTS:
        if options.only not in (None, script.name):
            continue
        console.print(f"[bold]{script.name}")
        try:
            document, stopped = run(script, script.quick if options.quick else script.whole)
        except subprocess.CalledProcessError as error:
            console.print(f"[red]{script.name}: no figures, exit status {error.returncode}")
            failed = True
            if error.returncode == -signal.SIGINT:
                break
            continue
        where = {"machine": platform.processor() or platform.machine(), "measured": provenance()}
        table = Table("ratio", "kept", "now", "")
        for name, ratio, more_is_faster in script.ratios(document):
            before = kept.get(name, {}).get("ratio")
            gone = 0.0 if before is None else loss(before, ratio, more_is_faster=more_is_faster)
            fallen += gone > FALL
            table.add_row(
                name,
                "" if before is None else f"{before:.3g}",
                f"{ratio:.3g}",
                f"[red]FELL by {gone:.0%}" if gone > FALL else "",
            )
            kept[name] = {"ratio": ratio, "more_is_faster": more_is_faster, **where}
        console.print(table)
        if not options.quick:
            replace_durably(options.record, (json.dumps(kept, indent=1) + "\n").encode())
        if stopped:
            console.print("stopped: the rest was not measured")
            break
    versions = provenance()["packages"]
    console.print(", ".join(f"{name} {version}" for name, version in versions.items()))
    return 1 if fallen or failed else 0


if __name__ == "__main__":
    sys.exit(main())
