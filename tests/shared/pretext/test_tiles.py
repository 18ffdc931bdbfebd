"""The tile cutter: exact copies, in their cells, apart from one another."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.pretext.tiles import Grid, TileHead, alike

GRIDS = st.builds(Grid, st.integers(32, 70), st.integers(2, 4), st.floats(0, 0.5), st.floats(0, 1))


def numbered(b: int, size: int) -> torch.Tensor:
    """Images whose pixels are all different."""
    return torch.arange(b * 3 * size * size).view(b, 3, size, size)


@settings(max_examples=15)
@given(GRIDS, st.booleans())
def test_tiles_are_of_their_cells_and_share_no_pixel(grid, joint):
    b, n = 2, grid.tiles
    places = grid.draw(np.random.default_rng(0), b, joint)
    assert places.shape == (b, n, 2)
    images = numbered(b, grid.image_size)
    tiles = grid.cut(images, places).unflatten(0, (n, b))
    assert tiles.shape == (n, b, 3, grid.tile, grid.tile)
    assert grid.tile >= 4
    assert len(tiles.unique()) == tiles.numel()  # no two tiles have the same pixel
    first = (grid.image_size - grid.side * grid.cell) // 2
    for i in range(n):
        for j in range(b):
            y, x = (first + grid.cell * (i // grid.side), first + grid.cell * (i % grid.side))
            cell = images[j, :, y : y + grid.cell, x : x + grid.cell]
            assert cell.shape[1:] == (grid.cell, grid.cell)
            y, x = places[j, i].tolist()
            assert torch.equal(tiles[i, j], cell[:, y : y + grid.tile, x : x + grid.tile])


def test_jitter_goes_through_its_share_of_the_gap():
    for jitter, expected in ((0.0, [24]), (14 / 48, list(range(17, 32))), (1.0, list(range(49)))):
        grid = Grid(432, 3, 1 / 3, jitter)  # Doersch et al.: tiles of 96, gaps of 48, jitter of 7
        assert (grid.tile, grid.gap_pixels) == (96, 48)
        assert grid.draw(np.random.default_rng(1), 300).unique().tolist() == expected
    grid = Grid(255, 3, 21 / 85, 1.0)  # jigsaw: tiles of 64 anywhere in cells of 85
    assert (grid.cell, grid.tile) == (85, 64)
    assert grid.draw(np.random.default_rng(1), 300).unique().tolist() == list(range(22))


def test_joint_jitter_keeps_the_distances_of_tiles():
    grid = Grid(96, 3, 1 / 3, 1.0)
    joint = grid.draw(np.random.default_rng(0), 50, joint=True)
    assert torch.equal(joint, joint[:, :1].expand_as(joint))
    assert len(joint[:, 0].unique(dim=0)) > 30
    alone = grid.draw(np.random.default_rng(0), 50)
    assert not torch.equal(alone, alone[:, :1].expand_as(alone))


def test_cells_in_another_order_and_back_are_the_tiles_again():
    grid, b = Grid(33, 3, 0.2, 0.0), 4
    images, places = numbered(b, 33), torch.ones(4, 9, 2, dtype=torch.long)
    order = torch.from_numpy(np.random.default_rng(0).random((b, 9)).argsort(1))
    plain = grid.cut(images, places).unflatten(0, (9, b))
    shuffled = grid.cut(images, places, order).unflatten(0, (9, b))
    for j in range(b):
        assert torch.equal(shuffled[:, j], plain[order[j], j])
        assert torch.equal(shuffled[order[j].argsort(), j], plain[:, j])


def test_all_tiles_of_an_image_get_its_mean_and_deviation():
    grid, generator = Grid(36, 3, 0.25, 0.5), torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 36, 36, generator=generator).cumsum(3)  # brighter to the right
    tiles = grid.cut(images, grid.draw(np.random.default_rng(0), 2))
    made = alike(tiles, images).unflatten(0, (9, 2))
    for value in (torch.mean, torch.std):
        of_tiles = value(made.flatten(3), -1)  # (9, 2, 3)
        assert (of_tiles - of_tiles[0]).abs().max() < 1e-3 < of_tiles.min()
    assert torch.allclose(made.mean((3, 4))[0], images.mean((2, 3)), atol=1e-4)
    blank = alike(torch.ones(9, 3, 4, 4), torch.rand(1, 3, 12, 12))  # a tile without contrast
    assert blank.isfinite().all()
    assert blank[0, 0].unique().numel() == 1


def border_guess(grid: Grid, images: torch.Tensor) -> float:
    """Accuracy of one who sees only borders: which of four tiles fits to the middle's edges?"""
    tiles = grid.cut(images, grid.draw(np.random.default_rng(0), len(images)))
    up, left, middle, right, down = tiles.unflatten(0, (9, -1))[[1, 3, 4, 5, 7]]
    pairs = [
        lambda other: middle[..., 0, :] - other[..., -1, :],  # above
        lambda other: middle[..., 0] - other[..., -1],
        lambda other: middle[..., -1] - other[..., 0],
        lambda other: middle[..., -1, :] - other[..., 0, :],
    ]
    hits = []
    for direction, other in enumerate((up, left, right, down)):
        misfit = torch.stack([pair(other).square().mean((1, 2)) for pair in pairs])
        hits.append(misfit.argmin(0) == direction)
    return torch.stack(hits).float().mean().item()


def test_borders_tell_nothing_where_there_is_a_gap():
    """Smoothed noise: neighbouring pixels are alike, and those beyond a gap are not."""
    noise = torch.rand(50, 3, 98, 98, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.avg_pool2d(noise, 3, 1)
    assert border_guess(Grid(96, 3, 0.0, 0.0), images) > 0.9
    assert border_guess(Grid(96, 3, 1 / 3, 0.3), images) == pytest.approx(0.25, abs=0.08)


def test_the_head_lays_its_groups_side_by_side():
    head = TileHead(2, torch.tensor([[1, 0], [1, 2]]), 4, 8).eval()
    features = torch.arange(12.0).view(6, 2)  # 3 tiles of 2 images
    answers = head(features)
    rows = [[2, 0], [3, 1], [2, 4], [3, 5]]  # group 0 of both images, then group 1
    assert torch.allclose(answers, head.layers(features[torch.tensor(rows)].flatten(1)))
    assert not any("groups" in key for key in head.state_dict())
