"""Cases that several test modules share."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from trm.nn.recursion import RecursionSchedule
from trm.nn.token_model import TokenModel, TokenModelConfig, TokenShape

TRM = RecursionSchedule()


def build(shape: TokenShape, schedule: RecursionSchedule = TRM, **config: Any) -> TokenModel:
    generator = torch.Generator().manual_seed(0)
    return TokenModel(shape, TokenModelConfig(**config), schedule, generator=generator)


class Golden:
    """Tensors of one golden file, and our model with its weights."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / "golden" / f"trm_{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"{path} is absent: the official implementation's tensors are not shipped")
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}
            config = json.loads(file.metadata()["config"])
        mixer = config["mlp_t"]
        self.model = build(
            TokenShape(
                vocab_size=config["vocab_size"],
                num_positions=config["seq_len"],
                num_puzzles=config["num_puzzle_identifiers"],
            ),
            RecursionSchedule(
                cycles=config["H_cycles"],
                inner=config["L_cycles"],
                supervision=config["halt_max_steps"],
            ),
            mixing="mixer" if mixer else "attention",
            positions="none" if mixer else "rotary",
            width=config["hidden_size"],
            heads=config["num_heads"],
            layers=config["L_layers"],
            prefix=config["puzzle_emb_len"],
            puzzle_channels=config["puzzle_emb_ndim"],
        )
        weights = {
            ours(key.removeprefix("weights.")): value
            for key, value in self.tensors.items()
            if key.startswith("weights.")
        }
        self.model.load_state_dict(weights, strict=True)
        self.inputs = self.tensors["batch.inputs"].long()
        self.labels = self.tensors["batch.labels"].long()
        self.puzzle = self.tensors["batch.puzzle_identifiers"].long()


def ours(official: str) -> str:
    """Our name of an official weight, written independently of the importer."""
    for theirs, mine in (
        ("L_level.layers.", "net_l.blocks."),
        ("mlp_t.gate_up_proj", "places.up"),
        ("mlp_t.down_proj", "places.down"),
        ("mlp.gate_up_proj", "channels.up"),
        ("mlp.down_proj", "channels.down"),
        ("self_attn.qkv_proj", "qkv"),
        ("self_attn.o_proj", "out"),
        ("embed_tokens.embedding_weight", "token_table"),
        ("puzzle_emb.weights", "puzzle_table"),
        ("lm_head", "readout"),
        ("q_head", "halt"),
        ("H_init", "start_h"),
        ("L_init", "start_l"),
    ):
        official = official.replace(theirs, mine)
    return official
