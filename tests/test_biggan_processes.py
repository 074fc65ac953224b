"""Two processes train BigGAN as one process does with both halves of the batch."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed

from stylegan2_icgan.systems.biggan import BIGGAN, BigGANOptions
from training.randomness import seed_everything
from training.system import DataShape

OPTIONS = BigGANOptions(z_dim=6, ch=2, shared_dim=4, attention="8", g_lr=2e-3)
HALF, STEPS = 4, 3


def train_generator(half: slice, across: bool) -> dict[str, torch.Tensor]:
    """State after some steps on a part of a fixed batch, gradients averaged over processes; and the first gradients."""
    torch.set_num_threads(1)
    seed_everything(0)
    options = dataclasses.replace(OPTIONS, bn_across=across)
    G = BIGGAN.networks["G"](options, DataShape(img_resolution=16, img_channels=1, c_dim=3, h_dim=0))
    optimizer = torch.optim.SGD(G.parameters(), lr=0.01)
    z, c = torch.randn(2 * HALF, 6), torch.eye(3)[torch.arange(2 * HALF) % 3]
    target = torch.randn(2 * HALF, 1, 16, 16)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (G(z[half], c[half]) * target[half]).mean().backward()
        if torch.distributed.is_initialized():
            for parameter in G.parameters():
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= torch.distributed.get_world_size()
        optimizer.step()
    gradients = {f"gradient of {name}": p.grad for name, p in G.named_parameters()}
    return {name: value.detach().clone() for name, value in G.state_dict().items()} | gradients


def process(rank: int, folder: str) -> None:
    store = torch.distributed.FileStore(f"{folder}/meeting", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for across in (True, False):
        state = train_generator(slice(rank * HALF, (rank + 1) * HALF), across)
        torch.save(state, f"{folder}/{across}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_process_with_twice_the_batch(tmp_path: Path) -> None:
    together = train_generator(slice(None), across=True)
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    for across in (True, False):
        first, second = (torch.load(tmp_path / f"{across}-{rank}.pt", weights_only=True) for rank in (0, 1))
        same = {name: torch.allclose(first[name], value, rtol=1e-4, atol=1e-6) for name, value in together.items()}
        assert all(same.values()) == across, [name for name, value in same.items() if not value]
        statistics = [name for name in first if "stored" in name]
        assert all(torch.equal(first[name], second[name]) for name in statistics) == across
        assert all(torch.equal(first[name], second[name]) for name in first if name not in statistics)
