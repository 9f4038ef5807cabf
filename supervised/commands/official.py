"""Weights of the official TRM and HRM checkpoints, under our names.

Official files hold a state dict with the prefix `model.inner.`, and `_orig_mod.` before that when
the model was compiled. Every key must be accounted for, on both sides: a loader that skips what it
does not know gives a random model (REFERENCE.md, section 0).
"""

import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from supervised.models import make_model
from supervised.recipe import SupervisedRecipe
from trm.nn.token_model import TokenModel, TokenShape

_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
)
_PREFIX = re.compile(r"^(_orig_mod\.)?(model\.)?(inner\.)?")
_NAMES = (
    (re.compile(r"^L_level\.layers\.(\d+)\."), r"net_l.blocks.\1."),
    (re.compile(r"^H_level\.layers\.(\d+)\."), r"net_h.blocks.\1."),
    (re.compile(r"\.mlp_t\.gate_up_proj\."), ".places.up."),
    (re.compile(r"\.mlp_t\.down_proj\."), ".places.down."),
    (re.compile(r"\.mlp\.gate_up_proj\."), ".channels.up."),
    (re.compile(r"\.mlp\.down_proj\."), ".channels.down."),
    (re.compile(r"\.self_attn\.qkv_proj\."), ".qkv."),
    (re.compile(r"\.self_attn\.o_proj\."), ".out."),
    (re.compile(r"^embed_tokens\.embedding_weight$"), "token_table"),
    (re.compile(r"^embed_pos\.embedding_weight$"), "position_table"),
    (re.compile(r"^puzzle_emb\.weights$"), "puzzle_table"),
    (re.compile(r"^lm_head\."), "readout."),
    (re.compile(r"^q_head\."), "halt."),
    (re.compile(r"^H_init$"), "start_h"),
    (re.compile(r"^L_init$"), "start_l"),
)


def our_name(official: str) -> str:
    """Our name of an official weight; a name that has none comes back without its prefix."""
    name = _PREFIX.sub("", official)
    for pattern, replacement in _NAMES:
        name = pattern.sub(replacement, name)
    return name


def read_official(path: Path) -> dict[str, Tensor]:
    """The tensors of an official checkpoint, .safetensors or torch's own format, float32.

    Raises:
        ValueError: names the file that can't be read or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            state: object = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read: {_one_line(error)}") from None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: expected names and tensors, got {type(state).__name__}")
    return {name: tensor.float() for name, tensor in state.items()}


def import_model(path: Path, recipe: SupervisedRecipe, shape: TokenShape) -> TokenModel:
    """A model of the recipe with the weights of an official checkpoint.

    The checkpoint says how many puzzle identifiers there are.

    Raises:
        ValueError: a weight is unknown, missing or of another shape than the recipe's.
    """
    official = read_official(path)
    weights: dict[str, Tensor] = {}
    for key, tensor in official.items():
        name = our_name(key)
        if name in weights:
            raise ValueError(f"{path}: {key}: appears twice, with and without prefix")
        weights[name] = tensor
    if "puzzle_table" in weights:
        shape = replace(shape, num_puzzles=len(weights["puzzle_table"]))
    model = make_model(recipe, shape, torch.Generator())
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: not the recipe's model: {_one_line(error)}") from None
    return model


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
