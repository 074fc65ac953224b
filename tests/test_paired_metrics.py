"""MSE, PSNR and SSIM of pairs: closed forms, and SSIM as its paper writes it, place by place."""

import math

import numpy as np
import pytest
import torch

from metrics.paired import NAMES, distances, mse, parse_names, psnr, ssim
from torch_utils.command_line import UserError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_mse_and_psnr_have_their_closed_forms() -> None:
    a = torch.full((4, 3, 12, 12), 100, dtype=torch.uint8)
    b = a + torch.tensor([0, 1, 10, 100], dtype=torch.uint8)[:, None, None, None]
    assert mse(a, b).tolist() == [0, 1, 100, 10000]
    assert psnr(a, b).tolist() == pytest.approx([math.inf, 48.1308036, 28.1308036, 8.1308036])
    half = a.clone()
    half[:, :, :6] = 110  # half of the pixels are 10 off
    assert mse(a, half).tolist() == [50] * 4
    assert mse(half, a).tolist() == [50] * 4  # uint8 differences do not wrap around


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, equations 13 to 17, one place after the other, of float [H, W]."""
    window = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)])
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (image[top : top + 11, left : left + 11] for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            rest = (2 * covariance + c2) / (var_a + var_b + c2)
            values.append(luminance * rest)
    return float(np.mean(values))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_the_paper(channels: int) -> None:
    a = noise(2, channels, 16, 14)
    b = (0.7 * a.float() + 0.3 * noise(2, channels, 16, 14, seed=1).float()).round().to(torch.uint8)
    expected = [
        np.mean([slow_ssim(x, y) for x, y in zip(p.double().numpy(), q.double().numpy(), strict=True)])
        for p, q in zip(a, b, strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-12)
    assert 0.1 < ssim(a, b).min() < 0.95


def test_ssim_of_equal_flat_and_inverted_images() -> None:
    a = noise(1, 1, 11, 11)
    assert ssim(a, a).tolist() == pytest.approx([1])
    black, white = torch.zeros(1, 1, 11, 11), torch.full((1, 1, 11, 11), 255.0)
    c1 = 2.55**2
    assert ssim(black, white).tolist() == pytest.approx([c1 / (255**2 + c1)])
    assert ssim(a, 255 - a) < 0


def test_names_and_sizes_are_checked() -> None:
    assert parse_names("ssim, mse,ssim") == ["ssim", "mse"]
    with pytest.raises(UserError, match=r"--metrics=mse,sim: 'sim' is none of mse, .* Did you mean 'ssim'"):
        parse_names("mse,sim")
    with pytest.raises(UserError, match="--metrics=ssim takes images of 11 pixels or more; these have 10"):
        ssim(noise(1, 1, 11, 10), noise(1, 1, 11, 10))
    assert list(distances(["psnr", "mse"], None)) == ["psnr", "mse"]
    assert "lpips" in NAMES
