"""What a model predicts after each supervision step, and how good that is.

A fixed number of steps for every sample; figures after each one, so that steps which change nothing
(dead compute) can be seen. `valid` is the verdict of the domain's own checker, which accepts every
completion; `exact` asks for the label. Input: a `TokenModel` and a `TokenDataset`; output: an
`Evaluation`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from supervised.data_sets.datasets import TokenBatch, TokenDataset
from supervised.measures.guidance import advantage_margin, guided_logits, hamming_distance
from supervised.objectives.losses import LossKind, exact, sample_losses, token_accuracy
from trm.compute.workers import ALONE, Workers
from trm.experiments.sections import check_at_least
from trm.nn.recursion import Latents
from trm.nn.stablemax import IGNORE
from trm.nn.token_model import TokenModel


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions:
    """How to evaluate."""

    steps: int | None = None
    """Supervision steps; None = the recipe's N_sup."""
    guidance: float = 1.0
    """w of l_u + w (l_c - l_u)."""
    noise: float = 0.0
    """Standard deviation of normal noise added to both latents after each step."""
    samples: int = 1
    """Runs of each sample with noise of their own; selected by the halting head, and by the
    checker."""
    feeds: Literal["input", "prediction"] = "input"
    """What later steps embed, as in training."""
    loss: LossKind = "stablemax"
    """What the model was trained with, hence which token commit decoding holds most certain."""
    batch_size: int = 256
    num: int | None = None
    """Examples, the first ones; None = all."""

    def __post_init__(self) -> None:
        check_at_least(self, "", 1, "steps", "samples")
        check_at_least(self, "", 0, "noise")
        if self.samples > 1 and self.noise == 0:
            raise ValueError(f"samples {self.samples} need noise above 0: without it all are equal")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFigures:
    """After one supervision step; means over examples, shares in [0, 1]."""

    step: int
    exact: float
    """Every supervised token equals the label's."""
    token_accuracy: float
    """Supervised tokens that equal the label's, mean over examples."""
    valid: float
    """The domain's checker accepts the prediction."""
    violated: float
    """The checker finds a violated constraint in it; what is neither valid nor violated is
    incomplete, or changes what was given."""
    loss: float
    """Mean StableMax cross-entropy of the label, nats."""
    hamming: float
    """V_s: wrong supervised tokens (Lemma A.2)."""
    changed: float
    """Supervised tokens whose prediction the step changed."""
    margin: float
    """Advantage margin at w = 1, mean over supervised tokens (Prop. 4.1)."""
    margin_positive: float
    """Share of supervised tokens whose margin is positive."""
    halting: float | None
    """Mean halting probability; None without a halting head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Figures of a model on a data set."""

    num: int
    """Examples."""
    curve: tuple[StepFigures, ...]
    """After each step."""
    early_exit: dict[str, float] | None
    """When each example stops at its first positive halting logit: exact, valid, steps (mean)."""
    selected: dict[str, float] | None
    """With several samples: exact and valid of the one whose halting logit is highest at the end
    (`exact_by_halting`, `valid_by_halting`), and whether the checker accepts any
    (`valid_by_checker`)."""

    @property
    def last(self) -> StepFigures:
        """After the last step."""
        return self.curve[-1]

    def to_json_dict(self) -> dict[str, Any]:
        """The last step's figures at the top, the others under `curve`."""
        final = asdict(self.last)
        return {
            "num": self.num,
            "steps": final.pop("step"),
            **final,
            "early_exit": self.early_exit,
            "selected": self.selected,
            "curve": [asdict(point) for point in self.curve],
        }


@torch.no_grad()
def evaluate(
    model: TokenModel,
    dataset: TokenDataset,
    options: EvalOptions | None = None,
    *,
    generator: torch.Generator | None = None,
    workers: Workers = ALONE,
) -> Evaluation:
    """Unroll the model on a data set.

    Args:
        model: on any device.
        dataset: examples are taken as stored, in order.
        options: see `EvalOptions`.
        generator: on the CPU, needed with noise.
        workers: each process takes a share of the examples, and all get the figures of all; what
            they send each other are figures of examples, never logits.
    """
    options = options or EvalOptions()
    num = len(dataset) if options.num is None else min(options.num, len(dataset))
    if num < 1:
        raise ValueError("num must be at least 1: there is no example to evaluate")
    device = model.start_h.device
    tables, chosen = [], []
    begin, end = (num * share // workers.size for share in (workers.rank, workers.rank + 1))
    for first in range(begin, end, options.batch_size):
        index = np.arange(first, min(end, first + options.batch_size))
        batch = dataset.batch(index).to(device)
        runs = [_run(model, dataset, batch, options, generator) for _ in range(options.samples)]
        tables.append(runs[0])
        if options.samples > 1:
            chosen.append(_select(runs))
    every = workers.gather((tables, chosen))
    whole = _joined([table for part, _ in every for table in part], dim=1)
    selected = _joined([table for _, part in every for table in part], dim=0)
    return Evaluation(
        num=num,
        curve=tuple(_curve(whole)),
        early_exit=_early_exit(whole),
        selected={name: float(values.mean()) for name, values in selected.items()} or None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Readout:
    """What one supervision step shows of the answer."""

    reference: Float[Tensor, "batch position vocab"]
    """l_u: logits before the step."""
    conditional: Float[Tensor, "batch position vocab"]
    """l_c: logits after it."""
    guided: Float[Tensor, "batch position vocab"]
    """l_w: what is predicted from."""
    halting: Float[Tensor, "batch two"] | None
    """Halting logits after the step."""


@torch.no_grad()
def unroll_steps(
    model: TokenModel,
    batch: TokenBatch,
    options: EvalOptions,
    generator: torch.Generator | None = None,
) -> Iterator[Readout]:
    """The readouts of step 1, 2, ..., N, the model's latents carried from one to the next.

    Noise is added after a step's logits are read, so that a readout has none of its own step.

    Args:
        model: on the batch's device.
        batch: examples; their labels are not looked at.
        options: the number of steps, guidance, noise, and what later steps embed.
        generator: on the CPU, needed with noise.
    """
    latents = model.start(len(batch.inputs))
    inputs, rows = batch.inputs, model.puzzle_table[batch.puzzle]
    for step in range(1, (options.steps or model.schedule.supervision) + 1):
        reference = model.read(latents, inputs)
        out = model(latents, inputs, rows, step=step)
        guided = guided_logits(reference, out.logits, weight=options.guidance)
        yield Readout(
            reference=reference, conditional=out.logits, guided=guided, halting=out.halting
        )
        latents = out.latents
        if options.noise:
            z_h = _noisy(latents.z_h, options.noise, generator)
            latents = Latents(z_h=z_h, z_l=_noisy(latents.z_l, options.noise, generator))
        if options.feeds == "prediction":
            inputs = guided.argmax(dim=-1)


def _noisy(z: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise ValueError("noise needs a generator")
    return z + scale * torch.randn(z.shape, generator=generator).to(z.device, z.dtype)


Table = dict[str, Tensor]
"""Name -> [step, example] figures of each example."""


def _run(
    model: TokenModel,
    dataset: TokenDataset,
    batch: TokenBatch,
    options: EvalOptions,
    generator: torch.Generator | None,
) -> Table:
    rows: dict[str, list[Tensor]] = {}
    labels = batch.labels
    supervised = labels != IGNORE
    count = supervised.sum(dim=1).clamp_min(1)
    before: Tensor | None = None
    for readout in unroll_steps(model, batch, options, generator):
        predicted = readout.guided.argmax(dim=-1)
        if before is None:
            before = readout.reference.argmax(dim=-1)
        verdict = dataset.verdict(batch, predicted)
        violated = ~verdict.solved & (verdict.violations > 0)
        margin = advantage_margin(readout.reference, readout.conditional, labels)
        figures: dict[str, Tensor] = {
            "exact": exact(predicted, labels),
            "token_accuracy": token_accuracy(predicted, labels),
            "valid": torch.from_numpy(verdict.solved),
            "violated": torch.from_numpy(violated),
            "loss": sample_losses(readout.guided, labels, kind="stablemax"),
            "hamming": hamming_distance(predicted, labels),
            "changed": ((predicted != before) & supervised).sum(dim=1),
            "margin": margin.sum(dim=1) / count,
            "margin_positive": (margin > 0).sum(dim=1) / count,
        }
        if readout.halting is not None:
            figures["halting"] = readout.halting[:, 0]
        for name, values in figures.items():
            rows.setdefault(name, []).append(values.double().cpu())
        before = predicted
    return {name: torch.stack(values) for name, values in rows.items()}


def _curve(table: Table) -> Iterator[StepFigures]:
    means = {name: values.mean(dim=1).tolist() for name, values in table.items()}
    if "halting" in table:
        means["halting"] = table["halting"].sigmoid().mean(dim=1).tolist()
    for index in range(len(table["exact"])):
        figures: dict[str, Any] = {name: values[index] for name, values in means.items()}
        yield StepFigures(step=index + 1, **{"halting": None, **figures})


def _early_exit(table: Table) -> dict[str, float] | None:
    if "halting" not in table:
        return None
    wants = table["halting"] > 0
    wants[-1] = True
    exit_step: Int[Tensor, " example"] = wants.int().argmax(dim=0)
    found = {
        name: float(table[name].gather(0, exit_step[None])[0].mean()) for name in ("exact", "valid")
    }
    return {**found, "steps": float(exit_step.double().mean()) + 1}


def _select(runs: list[Table]) -> Table:
    """What either way of selection gives, of several runs of the same examples."""
    last = {name: torch.stack([run[name][-1] for run in runs]) for name in ("exact", "valid")}
    found = {
        "valid_by_checker": last["valid"].amax(dim=0),
        "valid_first": last["valid"][0],
    }
    if "halting" in runs[0]:
        best = torch.stack([run["halting"][-1] for run in runs]).argmax(dim=0)
        for name, values in last.items():
            found[f"{name}_by_halting"] = values.gather(0, best[None])[0]
    return found


def _joined(tables: list[Table], *, dim: int) -> Table:
    names = tables[0] if tables else {}
    return {name: torch.cat([table[name] for table in tables], dim=dim) for name in names}
