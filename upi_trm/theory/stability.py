"""Stability of a trained run when its recursive compute is scaled at test time (UPI-TRM Sec. 4, 6).

`measure_drift` compares U_n and pi_phi at other depths than they were trained at, with the ball
projection as recorded or overridden, on initial and on visited states: Delta_V and Delta_pi of
Figure 2. `drift_correlations` has the correlation of App. C over several runs. The input is a run
that `subjects.py` opened; the reports go to the command line (`cli.py`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from plan_envs.domain import Int8Array
from plan_envs.evaluation import play
from trm.experiments.states import Boards, GreedyPolicy, edit_logits, policy_probabilities
from trm.nn.model import StateBatch
from trm.runs.pictures import new_figure, save_figure
from upi_trm.advantage import PerEdit
from upi_trm.evaluator import evaluate_states
from upi_trm.improvement import kl_divergence
from upi_trm.theory.lipschitz import LipschitzReport, recursion_lipschitz, value_lipschitz
from upi_trm.theory.subjects import Studied, visited_states, with_dials

MEASURES = ("delta_v", "delta_v_relative", "delta_pi", "delta_pi_kl", "success_rate")
"""Figures of a drift report, in the order of its tables."""

STATE_SETS = ("initial", "visited")
"""Drift is measured on first plans of episodes, and on plans that the policy's rollouts meet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """What changes at one depth, on one set of states, against the depth of training."""

    delta_v: float
    """Mean |U_n_eval - U_n_train|."""
    delta_v_relative: float | None
    """The same over the standard deviation of U_n_train over the states; None where that is 0."""
    delta_pi: float
    """Mean total variation between the policies at the two depths."""
    delta_pi_kl: float
    """Mean KL(pi_n_train || pi_n_eval), in nats."""
    success_rate: float
    """Share of the states from which the greedy policy at that depth gets to a solution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftTable:
    """Drift by depth and state set under one projection."""

    radius: float | None
    """R; None = projection off."""
    cells: dict[int, dict[str, Drift]]

    def measure(self, name: str) -> dict[str, dict[str, float | None]]:
        """One of `MEASURES` by depth (as text, for JSON) and state set."""
        return {
            str(depth): {where: getattr(drift, name) for where, drift in row.items()}
            for depth, row in self.cells.items()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """Drift of one checkpoint, with the Lipschitz constants of its networks."""

    run: str
    env: str
    step: int
    train_depth: int
    """n_train."""
    train_radius: float | None
    """R as recorded in the recipe; None = projection off."""
    modulus: float | None
    """L_z that the recipe's clamp keeps; None = no contraction."""
    num_states: dict[str, int]
    value_deviation: dict[str, float]
    """Standard deviation of U_n_train over each set of states, under the first projection."""
    tables: tuple[DriftTable, ...]
    """There is one table for each projection; the correlations read the first."""
    lipschitz: dict[str, LipschitzReport]
    """The keys are "evaluator" and "policy" (L_z of their recursions) and "value_head" (L_V)."""

    def to_json_dict(self) -> dict[str, Any]:
        """Plain values; the measures of the first projection are at the top too."""
        record = asdict(self)
        del record["tables"]
        return {
            **record,
            "radius": self.tables[0].radius,
            **{name: self.tables[0].measure(name) for name in MEASURES},
            "projections": {
                radius_name(table.radius): {name: table.measure(name) for name in MEASURES}
                for table in self.tables
            },
        }


def radius_name(radius: float | None) -> str:
    """R as a key of a record: "none" where the projection is off."""
    return "none" if radius is None else f"{radius:g}"


def measure_drift(
    studied: Studied,
    instances: Int8Array,
    *,
    depths: Sequence[int],
    radii: Sequence[float | None] | None = None,
    seed: int = 0,
    most: int = 2_000,
    lipschitz_states: int = 64,
) -> DriftReport:
    """Run the evaluator and the policy of a run at other depths than the one they learned at.

    Args:
        studied: the run.
        instances: puzzles whose initial plans and rollouts are measured.
        depths: n_eval.
        radii: projections R to measure under (at both depths), each a number or None for off; None
            for the recorded one, then off.
        seed: of the rollouts and of the estimates.
        most: visited states to measure on; more are thinned out at random.
        lipschitz_states: states at which Lipschitz constants are estimated.
    """
    if not depths or min(depths) < 0:
        raise ValueError(f"depths must be integers from 0, got {list(depths)}")
    domain, device = studied.domain, studied.placement.torch_device
    generator = torch.Generator().manual_seed(seed)
    sets = {
        "initial": Boards(instances=instances, plans=domain.initial(instances)),
        "visited": visited_states(
            domain, studied.probabilities, instances, generator=generator, device=device, most=most
        ),
    }
    chosen = dict.fromkeys([studied.model.radius, None]) if radii is None else radii
    measured = [_drift_table(studied, sets, depths=depths, radius=radius) for radius in chosen]
    few = torch.randperm(len(sets["visited"]), generator=generator)[:lipschitz_states].numpy()
    states, phi = studied.read(sets["visited"].select(few))
    return DriftReport(
        run=studied.name,
        env=studied.task.name,
        step=studied.step,
        train_depth=studied.model.depth,
        train_radius=studied.model.radius,
        modulus=studied.modulus,
        num_states={name: len(boards) for name, boards in sets.items()},
        value_deviation=measured[0][1],
        tables=tuple(table for table, _ in measured),
        lipschitz={
            "evaluator": recursion_lipschitz(studied.evaluator, states, generator=generator),
            "policy": recursion_lipschitz(studied.policy, states, generator=generator),
            "value_head": value_lipschitz(
                studied.evaluator, states, phi, value=studied.value, generator=generator
            ),
        },
    )


def _drift_table(
    studied: Studied, sets: dict[str, Boards], *, depths: Sequence[int], radius: float | None
) -> tuple[DriftTable, dict[str, float]]:
    """Drift under one projection, and the standard deviation of U_n_train over each set."""
    cells: dict[int, dict[str, Drift]] = {depth: {} for depth in depths}
    deviations = {}
    for where, boards in sets.items():
        states, phi = studied.read(boards)

        def at_depth(
            depth: int, states: StateBatch = states, phi: Tensor = phi
        ) -> tuple[Tensor, Tensor]:
            evaluator = with_dials(studied.evaluator, depth=depth, radius=radius)
            value = evaluate_states(evaluator, states, phi, value=studied.value)
            policy = with_dials(studied.policy, depth=depth, radius=radius)
            return value, policy_probabilities(policy, states)

        value, policy = at_depth(studied.model.depth)
        deviations[where] = float(value.std(correction=0))
        for depth in depths:
            other_value, other_policy = at_depth(depth)
            delta_v = float((other_value - value).abs().mean())
            log_other = other_policy.clamp_min(1e-300).log()
            divergence = kl_divergence(policy, log_other, states.mask > 0)
            cells[depth][where] = Drift(
                delta_v=delta_v,
                delta_v_relative=delta_v / deviations[where] if deviations[where] else None,
                delta_pi=float(total_variation(policy, other_policy).mean()),
                delta_pi_kl=float(divergence.clamp_min(0.0).mean()),
                success_rate=greedy_success(studied, boards, depth=depth, radius=radius),
            )
    return DriftTable(radius=radius, cells=cells), deviations


def total_variation(one: PerEdit, two: PerEdit) -> Float[Tensor, " batch"]:
    """Total variation between two policies at each state, in [0, 1]."""
    return 0.5 * (one - two).abs().sum(dim=1)


def greedy_success(studied: Studied, boards: Boards, *, depth: int, radius: float | None) -> float:
    """Share of states from which the greedy policy solves within the horizon.

    Dead ends continue, as in an evaluation.

    Args:
        studied: the run.
        boards: states to start from.
        depth: n of the policy.
        radius: R of its projection; None for off.
    """
    domain = studied.domain
    model = with_dials(studied.policy, depth=depth, radius=radius)
    final, _ = play(
        GreedyPolicy(partial(edit_logits, model), studied.placement),
        domain,
        boards.instances,
        boards.plans,
        rng=np.random.default_rng(0),  # the greedy policy draws nothing
        dead_end="continue",
        horizon=domain.spec.horizon,
    )
    return float(domain.check(boards.instances, final).solved.mean())


# --- Several runs together


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """How closely two columns of figures go together, over runs and depths."""

    pearson: float | None
    """Pearson's coefficient; None with fewer than three points, or where a column is constant."""
    pearson_log: float | None
    """Pearson's coefficient of the logarithms, over the points where both are positive."""
    points: int

    @staticmethod
    def of(pairs: Sequence[tuple[float, float]]) -> "Correlation":
        """Correlate the first figures of some pairs with the second ones."""
        positive = [(np.log(a), np.log(b)) for a, b in pairs if a > 0 and b > 0]
        return Correlation(
            pearson=_pearson(pairs), pearson_log=_pearson(positive), points=len(pairs)
        )


def _pearson(pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < 3:
        return None
    x, y = np.transpose(pairs)
    return None if np.ptp(x) == 0 or np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1])


def drift_correlations(reports: Sequence[DriftReport]) -> dict[str, dict[str, Correlation]]:
    """Correlations of UPI-TRM App. C, by state set, under each report's first projection.

    `delta_v_delta_pi`: Delta_V against Delta_pi over runs and depths (the depth of training left
    out: both are 0 there). `certified_modulus_delta_v` and `local_modulus_delta_v`: the proven
    L_z and its lower estimate against Delta_V at the largest depth, over runs.
    """
    found: dict[str, dict[str, Correlation]] = {}
    for where in STATE_SETS:
        drifts = [
            (row[where].delta_v, row[where].delta_pi)
            for report in reports
            for depth, row in report.tables[0].cells.items()
            if depth != report.train_depth
        ]
        last = []
        for report in reports:
            cells = report.tables[0].cells
            last.append((report.lipschitz["evaluator"], cells[max(cells)][where].delta_v))
        found[where] = {
            "delta_v_delta_pi": Correlation.of(drifts),
            "certified_modulus_delta_v": Correlation.of(
                [(known.certified, v) for known, v in last if known.certified is not None]
            ),
            "local_modulus_delta_v": Correlation.of([(known.local, v) for known, v in last]),
        }
    return found


def plot_drift(reports: Sequence[DriftReport], path: Path) -> None:
    """Draw Delta_V and Delta_pi by depth (Figure 2), and one against the other (App. C).

    Raises:
        ValueError: without matplotlib, or for a file type it does not know.
    """
    figure = new_figure(12.0, 3.6)
    by_value, by_policy, together = figure.subplots(1, 3)
    for index, report in enumerate(reports):
        for table, line in zip(report.tables, ("-", "--", ":", "-."), strict=False):
            # At the depth of training both are 0, which has no place on a logarithmic axis.
            depths = [depth for depth in sorted(table.cells) if depth != report.train_depth]
            for where, mark in zip(STATE_SETS, ("o", "s"), strict=True):
                drifts = [table.cells[depth][where] for depth in depths]
                label = f"{Path(report.run).name}, {where}, R = {radius_name(table.radius)}"
                style: dict[str, Any] = {"color": f"C{index}", "marker": mark, "label": label}
                dv, dpi = [d.delta_v for d in drifts], [d.delta_pi for d in drifts]
                by_value.plot(depths, dv, line, **style)
                by_policy.plot(depths, dpi, line, **style)
                together.plot(dv, dpi, linestyle="none", **style)
    for axes, name in ((by_value, "Delta_V"), (by_policy, "Delta_pi")):
        axes.set(xlabel="depth n_eval", ylabel=name, yscale="log")
        axes.set_xscale("symlog", base=2, linthresh=1)
    together.set(xlabel="Delta_V", ylabel="Delta_pi", xscale="log", yscale="log")
    found = drift_correlations(reports)["visited"]["delta_v_delta_pi"]
    if found.pearson_log is not None:
        title = f"visited states, R as recorded: Pearson of logarithms {found.pearson_log:.3f}"
        together.set_title(title, fontsize=8)
    labels = by_value.get_legend_handles_labels()
    figure.legend(*labels, fontsize=6, loc="outside lower center", ncols=4)
    save_figure(figure, path)
