"""The eight turns and flips, the shifts, and the draws."""

import pytest
import torch

from lenstrain.config import DataConfig
from lenstrain.networks.d4 import D4_ORDER, transform
from lenstrain.training.augment import augment, draw


def numbered(batch, size=6, channels=2):
    return torch.arange(batch * channels * size * size).view(batch, channels, size, size).float()


@pytest.mark.parametrize("element", range(D4_ORDER))
def test_each_element_is_a_flip_and_then_quarter_turns(element):
    x = numbered(3)
    flipped = x.flip(3) if element >= 4 else x
    expected = torch.rot90(flipped, element % 4, (2, 3))
    torch.testing.assert_close(transform(x, torch.full((3,), element)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("size", "window"), [(101, None), (101, 33), (48, 32)])
def test_stamps_of_any_side_are_turned_exactly(size, window):
    x = numbered(D4_ORDER, size=size, channels=1)
    edge = 0 if window is None else (size - window) // 2
    turned = transform(x, torch.arange(D4_ORDER), window=window)
    for element in range(D4_ORDER):
        flipped = x[element].flip(2) if element >= 4 else x[element]
        expected = torch.rot90(flipped, element % 4, (1, 2))
        assert torch.equal(turned[element], expected[:, edge : size - edge, edge : size - edge])


def test_the_eight_elements_are_all_different_and_form_a_group():
    x = numbered(1, channels=1)
    images = [transform(x, torch.tensor([e])) for e in range(D4_ORDER)]
    distinct = {tuple(image.flatten().tolist()) for image in images}
    assert len(distinct) == 8
    for image in images:
        for element in range(D4_ORDER):
            again = transform(image, torch.tensor([element]))
            assert tuple(again.flatten().tolist()) in distinct


def test_stamps_of_a_batch_turn_each_their_own_way():
    x = numbered(4)
    elements = torch.tensor([0, 3, 5, 6])
    together = transform(x, elements)
    for i, element in enumerate(elements):
        alone = transform(x[i : i + 1], element.view(1))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=0)


def test_a_shift_moves_the_content_by_dy_and_dx():
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 4] = 1
    moved = transform(x, torch.tensor([0]), torch.tensor([2]), torch.tensor([-1]))
    assert torch.nonzero(moved).tolist() == [[0, 0, 5, 3]]


def test_a_shift_fills_the_edge_with_its_mirror_image():
    x = torch.arange(5.0).expand(1, 1, 5, 5).contiguous()
    moved = transform(x, torch.tensor([0]), torch.tensor([0]), torch.tensor([2]))
    assert moved[0, 0, 0].tolist() == [2, 1, 0, 1, 2]
    moved = transform(x, torch.tensor([0]), torch.tensor([0]), torch.tensor([-2]))
    assert moved[0, 0, 0].tolist() == [2, 3, 4, 3, 2]


def test_a_window_is_the_centre_of_the_whole_result():
    x = numbered(8, size=10)
    index = torch.arange(8)
    whole = augment(x, index, DataConfig(shift_px=2), seed=3, epoch=1)
    centre = augment(x, index, DataConfig(shift_px=2), seed=3, epoch=1, window=6)
    torch.testing.assert_close(centre, whole[..., 2:8, 2:8], rtol=0, atol=0)
    torch.testing.assert_close(
        transform(x, index, window=4), transform(x, index)[..., 3:7, 3:7], rtol=0, atol=0
    )


def test_draws_are_uniform_over_the_eight_elements_and_the_shifts():
    n = 80_000
    element, dy, dx = draw(torch.arange(n), seed=1, epoch=4, shift_px=2)
    # Chi-square with 7 and 24 degrees of freedom: 24.3 and 51.2 are passed once in a thousand.
    counts = torch.bincount(element, minlength=8).double()
    assert len(counts) == 8
    assert ((counts - n / 8) ** 2 / (n / 8)).sum() < 24.3
    cells = torch.bincount((dy + 2) * 5 + dx + 2, minlength=25).double()
    assert len(cells) == 25
    assert ((cells - n / 25) ** 2 / (n / 25)).sum() < 51.2
    pairs = torch.bincount(element * 5 + dy + 2, minlength=40).double()
    assert ((pairs - n / 40) ** 2 / (n / 40)).sum() < 72.1  # 39 degrees: they are independent


def test_a_draw_depends_on_row_seed_and_epoch_alone():
    index = torch.arange(1000)
    base = draw(index, seed=1, epoch=0)[0]
    shuffled = torch.randperm(1000)
    torch.testing.assert_close(draw(index[shuffled], seed=1, epoch=0)[0], base[shuffled])
    for other in (draw(index, seed=2, epoch=0)[0], draw(index, seed=1, epoch=1)[0]):
        assert 60 < (other == base).sum() < 200  # an eighth agrees by chance


def test_without_d4_stamps_are_only_shifted():
    x, index = numbered(5), torch.arange(5)
    shifted = augment(x, index, DataConfig(d4=False, shift_px=1), seed=0, epoch=0)
    _, dy, dx = draw(index, seed=0, epoch=0, shift_px=1)
    expected = transform(x, torch.zeros_like(index), dy, dx)
    torch.testing.assert_close(shifted, expected, rtol=0, atol=0)
    assert not torch.equal(shifted, x)


def test_without_any_augmentation_the_very_stamps_are_trained_on():
    x = numbered(5)
    assert augment(x, torch.arange(5), DataConfig(d4=False), seed=0, epoch=0) is x


def test_float16_pixels_keep_their_bits():
    x = torch.randn(8, 3, 64, 64).half()
    turned = transform(x, torch.arange(8))
    assert turned.dtype == torch.float16
    assert torch.equal(turned.flatten(1).sort().values, x.flatten(1).sort().values)


def test_stamps_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="square"):
        transform(torch.zeros(1, 1, 4, 6), torch.tensor([0]))
