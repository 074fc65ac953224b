"""The networks of self-conditioned GANs: where a condition enters them. tests/test_contract.py has the rest."""

import torch

from stylegan2_icgan.systems.selfcond import SelfCondOptions, make_discriminator, make_generator
from training.randomness import seed_everything
from training.system import DataShape

OPTIONS = SelfCondOptions(z_dim=5, ch=2, embed_dim=4)


def test_the_logit_is_that_of_the_class() -> None:
    seed_everything(0)
    D = make_discriminator(OPTIONS, DataShape(8, 3, c_dim=6, h_dim=0)).eval()
    images, label = torch.randn(4, 3, 8, 8), torch.tensor([5, 0, 3, 3])
    every = D.out(D.features(images))  # [N, 6]
    assert torch.equal(D(images, torch.eye(6)[label]), every[torch.arange(4), label][:, None])


def test_an_instance_adds_its_projection() -> None:
    seed_everything(0)
    D = make_discriminator(OPTIONS, DataShape(8, 1, c_dim=2, h_dim=3)).eval()
    images, c, h = torch.randn(4, 1, 8, 8), torch.eye(2)[[0, 1, 1, 0]], torch.randn(4, 3)
    x = D.features(images)
    expected = (D.out(x) * c).sum(dim=1) + (D.embed_feats(h) * x).sum(dim=1)
    assert torch.allclose(D(images, c, h)[:, 0], expected)


def test_a_class_is_a_direction_and_z_alone_is_truncated() -> None:
    seed_everything(0)
    G = make_generator(OPTIONS, DataShape(8, 1, c_dim=6, h_dim=0)).eval()
    assert G.trunk.z_dim == 9
    z, c = torch.randn(2, 5), torch.eye(6)[[2, 4]]
    images = G(z, c)
    with torch.no_grad():
        G.embed.weight *= 7
    assert torch.allclose(G(z, c), images, atol=1e-6)
    assert torch.allclose(G(z, c, truncation_psi=0.5), G(z / 2, c))
    assert torch.allclose(G(z, c, truncation_psi=0), G(torch.zeros_like(z), c))
    assert not torch.allclose(G(z, c, truncation_psi=0)[0], G(z, c, truncation_psi=0)[1])
