"""A fixed list of augmented copies: the same in every batch, and another for another seed."""

import numpy as np
import pytest
import torch

from plan_envs.sudoku.instances import sudoku_instances
from plan_envs.sudoku.rules import Sudoku
from supervised.data_sets.datasets import BoardDataset
from supervised.data_sets.fixed_images import FixedImages


def test_fixed_images_are_the_same_in_every_batch_and_seeded() -> None:
    data = BoardDataset.of(Sudoku(4), sudoku_instances(side=4, num=5, blanks=(6, 8), seed=0))
    images = FixedImages(data, 3, seed=1)
    assert len(images) == 20
    whole = images.batch(range(20))
    for row in (0, 7, 13):
        assert torch.equal(images.batch([row]).inputs[0], whole.inputs[row])
    assert torch.equal(whole.inputs[::4], data.batch(range(5)).inputs)
    assert whole.example.tolist() == [k for k in range(5) for _ in range(4)]
    assert images.verdict(whole, whole.labels).solved.all()
    other = FixedImages(data, 3, seed=2).batch(range(20))
    assert not torch.equal(other.inputs, whole.inputs)
    with pytest.raises(ValueError, match="the images are fixed"):
        images.batch([0], np.random.default_rng(0))
