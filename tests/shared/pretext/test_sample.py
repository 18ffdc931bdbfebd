"""Images that a task looks at before it trains."""

import numpy as np
import pytest
import torch

from shared.config.sections import Data
from shared.data.batches import plain_batches
from shared.pretext import sample as module
from shared.pretext.sample import in_chunks, sample
from shared.runtime.errors import UserError
from tests.support.pretext import painted
from tests.support.sources import opened


@pytest.mark.parametrize("loading", ["memory", "workers"])
def test_it_is_even_and_as_evaluation_shows_them(loading, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLED", 4)
    monkeypatch.setattr(module, "AT_ONCE", 3)
    images = opened(painted(tmp_path, 16, 10), image_size=8, loading=loading).train
    data = Data(image_size=8, workers=0)
    sampled = sample(images, data)
    assert sampled.shape == (4, 3, 8, 8)
    assert sampled.dtype == torch.uint8
    assert torch.equal(sampled, sample(images, data))
    ids = np.array([0, 3, 6, 9]) * (len(images) - 1) // 9
    (shown, _), *_ = plain_batches(images, ids, data, 10, "cpu")
    assert [len(chunk) for chunk in in_chunks(sampled)] == [3, 1]
    assert (torch.cat(list(in_chunks(sampled))) - shown).abs().max() <= 0.5 / 255 + 1e-6


def test_few_images_are_all_taken_and_an_unreadable_one_is_named(tmp_path):
    images = opened(painted(tmp_path, 8, 5), image_size=8, loading="workers").train
    assert len(sample(images, Data(image_size=8, workers=0))) == len(images)
    for file in tmp_path.glob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read .*\.png"):
        sample(images, Data(image_size=8, workers=0))
