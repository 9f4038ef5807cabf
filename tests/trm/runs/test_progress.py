"""The progress display says what was reported, live on a terminal and in plain lines elsewhere."""

import io
import sys

import pytest
from rich.console import Console

from trm.runs import progress
from trm.runs.progress import TrainingProgress

COLUMNS = {"success": ".1%", "KL": ".1e"}


class Clock:
    """Time that passes only when told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def plain() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=200), output


def test_a_log_file_gets_one_line_per_report(clock: Clock) -> None:
    console, output = plain()
    with TrainingProgress(5000, COLUMNS, start=1000, console=console) as shown:
        clock.now += 4
        shown.report(2000, {"success": 0.25, "KL": 3e-4, "unnamed": 1})
        clock.now += 4
        shown.report(3000, {"success": 1})
    # 1,000 edits in 4 seconds; the steps before the resume don't count as speed.
    assert output.getvalue().splitlines() == [
        "edits 2,000/5,000  250/s  ? left  success 25.0%  KL 3.0e-04",
        "edits 3,000/5,000  250/s  0:08 left  success 100.0%",
    ]


def test_without_reports_a_log_file_gets_a_line_every_ten_seconds(clock: Clock) -> None:
    console, output = plain()
    with TrainingProgress(100_000, COLUMNS, unit="steps", console=console) as shown:
        for second in range(1, 26):
            clock.now += 1
            shown.update(10 * second)
    assert output.getvalue().splitlines() == [
        "steps 100/100,000  10/s  2:46:30 left",
        "steps 200/100,000  10/s  2:46:20 left",
    ]


def test_the_time_left_does_not_count_what_the_first_step_compiled(clock: Clock) -> None:
    console, output = plain()
    with TrainingProgress(100, COLUMNS, console=console) as shown:
        for index, seconds in enumerate((90, 1, 1)):
            clock.now += seconds
            shown.report(10 * (1 + index), {})
    assert output.getvalue().splitlines() == [
        "edits 10/100  0/s  ? left",
        "edits 20/100  10/s  0:08 left",
        "edits 30/100  10/s  0:07 left",
    ]


def test_before_the_first_step_the_time_left_is_not_known(clock: Clock) -> None:
    console, output = plain()
    with TrainingProgress(100, COLUMNS, console=console) as shown:
        shown.report(0, {})
    assert output.getvalue() == "edits 0/100  0/s  ? left\n"


def test_a_terminal_shows_the_latest_reports_and_the_bar(clock: Clock) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    with TrainingProgress(5000, COLUMNS, console=console) as shown:
        for i in range(1, 11):
            clock.now += 1
            shown.update(100 * i)
            shown.report(100 * i, {"success": i / 100})
        shown.note("saved [best] at 1000")
    last_picture = output.getvalue().rpartition("success")[2]
    for i in range(3, 11):
        assert f"{i}.0%" in last_picture
    assert " 2.0%" not in last_picture
    assert "1000/5000" in last_picture
    assert "100 edits/s" in last_picture
    assert "saved [best] at 1000" in output.getvalue()


def test_results_on_stdout_stay_clean(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(10, COLUMNS) as shown:
        shown.report(10, {"success": 1.0})
        print("result", file=sys.stdout)
    captured = capsys.readouterr()
    assert captured.out == "result\n"
    assert "success 100.0%" in captured.err
