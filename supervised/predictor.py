"""A supervised run as the Python API and the replay viewer use it: instances in, boards out.

Input: instances of `plan_envs`. Output: the plan that the model's tokens mean after each
supervision step, with entropies and halting probabilities (`learners.Prediction`).
"""

import numpy as np
import torch

from plan_envs.domain import Int8Array
from supervised.data_sets.codecs import BoardCodec, codec_of
from supervised.data_sets.datasets import TokenBatch
from supervised.measures.evaluation import EvalOptions, unroll_steps
from supervised.models import load_model, open_data
from supervised.recipe import SupervisedRecipe
from trm.compute.device import Placement
from trm.experiments.learners import Prediction, Predictor
from trm.nn.stablemax import IGNORE, stablemax_log_probabilities
from trm.nn.token_model import TokenModel
from trm.runs.files import RunError
from trm.runs.run import Run


def load_predictor(run: Run, *, placement: Placement, step: int | str | None = None) -> Predictor:
    """The model of a checkpoint, its running average where there is one.

    Raises:
        RunError: a run on ARC, whose tokens are those of a whole data set.
    """
    placement.apply()
    if run.info.env == "arc":
        raise RunError(
            f"{run.path / 'run.json'}: env is 'arc', whose runs know their tasks by a data set;"
            f" `upi-trm supervised vote {run.path}` answers them"
        )
    codec = codec_of(run.info.env)
    model, recipe = load_model(run, step=step, placement=placement)
    model.eval()

    def predict(instances: Int8Array) -> Prediction:
        return _predict(model, recipe, codec, instances)

    def unseen(num: int) -> Int8Array:
        dataset = open_data(recipe.data, "test", seed=run.info.seed, num=num)
        inputs = dataset.batch(range(min(num, len(dataset)))).inputs.numpy()
        return codec.decode(inputs, inputs)[0]

    return Predictor(domain=codec.domain, predict=predict, unseen=unseen)


@torch.no_grad()
def _predict(
    model: TokenModel, recipe: SupervisedRecipe, codec: BoardCodec, instances: Int8Array
) -> Prediction:
    inputs, _ = codec.encode(instances, np.zeros_like(instances))
    tokens = torch.from_numpy(inputs.astype(np.int64)).to(model.start_h.device)
    batch = TokenBatch(
        inputs=tokens,
        labels=torch.full_like(tokens, IGNORE),
        puzzle=tokens.new_zeros(len(tokens)),
        example=torch.arange(len(tokens)),
    )
    options = EvalOptions(**recipe.as_trained)
    stablemax = options.loss == "stablemax"
    plans, entropies, halting = [], [], []
    for readout in unroll_steps(model, batch, options):
        predicted = readout.guided.argmax(dim=-1).cpu().numpy()
        plans.append(codec.decode(inputs, predicted)[1])
        logits = readout.guided
        logs = stablemax_log_probabilities(logits) if stablemax else logits.log_softmax(-1)
        entropies.append(-(logs.exp() * logs).sum(dim=-1).float().cpu().numpy())
        if readout.halting is not None:
            halting.append(torch.sigmoid(readout.halting[:, 0]).float().cpu().numpy())
    return Prediction(
        plans=np.stack(plans),
        entropy=np.stack(entropies),
        halting=np.stack(halting) if halting else None,
    )
