"""Issue 2, must show 8: a training killed with SIGKILL 20 times ends as if it had never stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[3] / "tests" / "support"


@pytest.mark.slow
def test_a_training_killed_twenty_times_ends_with_the_weights_of_an_uninterrupted_one() -> None:
    script = [sys.executable, str(HERE / "kill_training.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 20
    assert found["weights_equal"]
    assert found["metrics_equal"]
    assert found["most_lost"] <= found["interval"]
    # The kills did come in the middle of things.
    assert found["some_lost"] >= 3
    assert found["checkpoint_when_last_killed"] >= 5 * found["interval"]
