"""The snapshots in models/: small, and what they make is like what they are shown."""

from pathlib import Path

import pytest
import torch
from conftest import invoke

import generate
from stylegan2_icgan.features import restore_extractor
from stylegan2_icgan.models import load_model
from torch_utils.files import sha256
from training.sampling import sample_images, z_from_seeds

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.pt"))


def test_there_is_one_and_each_is_described() -> None:
    text = (Path(__file__).parents[1] / "models" / "README.md").read_text(encoding="utf-8")
    assert MODELS
    for path in MODELS:
        assert f"## {path.name}" in text
        assert f"{path.stat().st_size:,} bytes" in text
        assert sha256(path) in text


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_published_model_makes_images_like_its_exemplars(path: Path) -> None:
    assert path.stat().st_size <= 20_000_000
    model = load_model(path, torch.device("cpu"))
    rows = slice(0, len(model.exemplars), max(len(model.exemplars) // 64, 1))
    shown = model.exemplars.condition[rows]
    images = sample_images(model.generator, z_from_seeds(range(len(shown.h)), model.generator.z_dim), shown)
    extractor = restore_extractor(model.exemplars.extractor, model.exemplars.extractor_state, None, model.device)
    cosines = extractor(images) @ shown.h.T
    own = cosines.diagonal()
    others = cosines.flatten()[1:].view(len(own) - 1, -1)[:, :-1]  # all but the diagonal
    assert own.mean() > others.mean() + 0.15
    ranks = (cosines > own[:, None]).sum(dim=1)
    assert ranks.float().mean() < len(own) / 5  # by chance it would be half


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_published_model_is_drawn_by_its_command(path: Path, tmp_path: Path) -> None:
    result = invoke(generate.main, f"--network={path}", "--rows=0-1", "--seeds=0-1", f"--outdir={tmp_path}")
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("*.png"))) == 5
