"""Generators: seeded for a block, and as before afterwards."""

import pytest
import torch

from lenstrain.training.run import seeded

CPU = torch.device("cpu")


def test_a_seeded_block_draws_the_same_and_leaves_the_generator_as_it_was():
    torch.manual_seed(1)
    with seeded(7, CPU):
        first = torch.rand(3)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), first)  # the seed means what it means elsewhere


def test_a_block_on_the_cpu_touches_no_gpu(monkeypatch):
    for name in ("manual_seed", "manual_seed_all", "get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("a GPU was asked"))
    with seeded(7, CPU):
        torch.rand(3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is there")
def test_a_block_on_a_gpu_leaves_its_generator_as_it_was():
    device = torch.device("cuda", 0)
    torch.cuda.manual_seed(1)
    with seeded(7, device):
        first = torch.rand(3, device=device)
    after = torch.rand(3, device=device)
    torch.cuda.manual_seed(1)
    assert torch.equal(torch.rand(3, device=device), after)
    with seeded(7, device):
        assert torch.equal(torch.rand(3, device=device), first)
