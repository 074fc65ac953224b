import functools
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from conftest import write_zip

from stylegan2_icgan.extractors.networks import NetworkExtractor
from stylegan2_icgan.extractors.pca import PcaExtractor
from stylegan2_icgan.features import (
    EXTRACTORS,
    canonical_name,
    check_extractor_name,
    default_extractor,
    fit_extractor,
    restore_extractor,
)
from torch_utils.command_line import UserError
from training.dataset import ImageFolderDataset

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def test_pca_features_are_whitened_directions(patterns_zip: Path) -> None:
    dataset = ImageFolderDataset(patterns_zip)
    extractor = fit_extractor("pca", dataset, None, CPU)
    features = extractor(dataset.images(range(40)))
    assert features.shape == (40, extractor.h_dim)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(40))
    pixels = dataset.images(range(40)).float().flatten(1).double() / 255
    centred = pixels - pixels.mean(0)
    projected = centred @ extractor.state["components"].T.double()
    covariance = projected.T @ projected / 39
    torch.testing.assert_close(covariance, torch.eye(extractor.h_dim, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.double(), projected / projected.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    explained = (torch.linalg.svdvals(centred) ** 2).cumsum(0)
    share = explained / explained[-1]
    assert share[extractor.h_dim - 1] >= 0.9 > share[extractor.h_dim - 2]


def test_pca_takes_larger_and_coloured_images_as_it_was_fitted(patterns_zip: Path) -> None:
    dataset = ImageFolderDataset(patterns_zip)
    extractor = fit_extractor("pca", dataset, None, CPU)
    images = dataset.images([0, 1, 2])
    larger = images.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3).expand(-1, 3, -1, -1)
    torch.testing.assert_close(extractor(larger), extractor(images), atol=1e-5, rtol=0)
    again = restore_extractor(extractor.description, extractor.state, None, CPU)
    assert isinstance(again, PcaExtractor)
    assert torch.equal(again(images), extractor(images))


def test_pca_tells_digits_apart() -> None:
    """Real images: most of the five nearest neighbours of a digit are the same digit."""
    dataset = ImageFolderDataset(ROOT / "datasets" / "digits.zip", use_labels=True)
    dataset.decode_into_memory()
    extractor = fit_extractor("pca", dataset, None, CPU)
    features = extractor(dataset.images(range(len(dataset))))
    similarity = features @ features.T
    similarity.fill_diagonal_(-1)
    nearest = similarity.topk(5).indices.numpy()
    assert dataset.class_ids is not None
    assert (dataset.class_ids[nearest] == dataset.class_ids[:, None]).mean() > 0.95


def test_pca_refuses_images_that_are_all_alike_and_weights(tmp_path: Path, patterns_zip: Path) -> None:
    alike = ImageFolderDataset(write_zip(tmp_path / "alike.zip", [np.full((8, 8), 7, np.uint8)] * 5))
    with pytest.raises(UserError, match="all images are the same"):
        fit_extractor("pca", alike, None, CPU)
    with pytest.raises(UserError, match="leave it out"):
        fit_extractor("pca", ImageFolderDataset(patterns_zip), Path("w.pth"), CPU)


@functools.cache
def resnet_state(name: str = "resnet50") -> dict[str, torch.Tensor]:
    """Tensors of a ResNet that differ from each other, yet take 80 kB in a file: windows on one array of noise."""
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 0.05
    state = {}
    for offset, (key, tensor) in enumerate(getattr(torchvision.models, name)(weights=None).state_dict().items()):
        if tensor.ndim == 1:
            state[key] = noise[offset : offset + len(tensor)] + 1
        elif tensor.ndim:
            strides = (3, 5, 1, 2)[: tensor.ndim]
            state[key] = noise.as_strided(tensor.shape, strides, offset)
        else:
            state[key] = torch.zeros((), dtype=torch.int64)
    return state


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "torchvision.pth"
    torch.save(resnet_state(), path)
    return path


def made_from(path: Path, content: object, name: str = "resnet50") -> NetworkExtractor:
    torch.save(content, path)
    extractor = fit_extractor(name, None, path, CPU)  # type: ignore[arg-type]
    assert isinstance(extractor, NetworkExtractor)
    return extractor


def test_resnet50_is_torchvisions_pooled_output(tmp_path: Path, resnet_file: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = made_from(tmp_path / "torchvision.pth", resnet_state())
    features = extractor(images)
    assert features.shape == (2, 2048) == (2, extractor.h_dim)
    network = torchvision.models.resnet50(weights=None)
    network.load_state_dict(torch.load(resnet_file, weights_only=True))
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        expected = torch.nn.functional.normalize(network.eval()(x))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
    assert (features[0] - features[1]).abs().max() > 1e-4
    small = torch.nn.functional.interpolate(
        images[:, :, :32, :32].float(), size=(224, 224), mode="bicubic", antialias=True
    )
    whole = extractor(small.clamp(0, 255).round().to(torch.uint8))
    assert (extractor(images[:, :, :32, :32]) * whole).sum(dim=1).min() > 0.9999  # nothing cropped


def test_resnets_are_found_in_the_files_of_swav_and_of_long_tailed_training(tmp_path: Path, resnet_file: Path) -> None:
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = fit_extractor("resnet50", None, resnet_file, CPU)(images)  # type: ignore[arg-type]
    headless = {name: tensor for name, tensor in resnet_state().items() if not name.startswith("fc.")}
    heads = {"module.projection_head.0.weight": torch.ones(2, 2), "module.prototypes.weight": torch.ones(3, 2)}
    swav = {f"module.{name}": tensor for name, tensor in headless.items()} | heads
    extractor = made_from(tmp_path / "swav.pth.tar", swav, "swav")
    assert torch.equal(extractor(images), expected)
    assert extractor.description["dropped"] == ["projection_head", "prototypes"]
    assert extractor.description["licence"] == "CC BY-NC 4.0"

    parts = {"feat_model": {f"module.{n}": t for n, t in headless.items()}, "classifier": {"fc.weight": torch.ones(2)}}
    tailed = made_from(tmp_path / "lt.pth", {"epoch": 90, "best_acc": 0.4, "state_dict_best": parts}, "resnet50-lt")
    assert torch.equal(tailed(images), expected)
    assert tailed.description["name"] == "resnet50-lt"
    old = {f"backbone.{name}": t for name, t in headless.items() if "num_batches_tracked" not in name}
    assert torch.equal(made_from(tmp_path / "old.pth", {"state_dict": old}, "resnet50-lt")(images), expected)


@pytest.mark.slow
def test_swav_in_half_precision_and_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {name: tensor.half() for name, tensor in torchvision.models.resnet50(weights=None).state_dict().items()}
    path = tmp_path / "swav.safetensors"
    safetensors.torch.save_file({f"module.{n}": t for n, t in state.items() if not n.startswith("fc.")}, path)
    extractor = fit_extractor("swav", None, path, CPU)  # type: ignore[arg-type]
    images = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(extractor(images).norm(dim=1), torch.ones(1))
    assert torch.equal(extractor(images), made_from(tmp_path / "same.pth", state)(images))


def test_files_of_other_resnets_are_refused(tmp_path: Path) -> None:
    def refusal(content: dict[str, torch.Tensor]) -> str:
        with pytest.raises(UserError) as caught:
            made_from(tmp_path / "x.pth", content)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"--extractor-weights={tmp_path / 'x.pth'} ")
        return str(caught.value)

    state = resnet_state()
    partial = {name: tensor for name, tensor in state.items() if "layer3.5" not in name}
    assert "lacks 15 tensors of a ResNet-50 (first: layer3.5.conv1.weight)" in refusal(partial)
    assert "tensors that a ResNet-50 has not (first: layer3.6.conv1.weight)" in refusal(resnet_state("resnet101"))
    wide = resnet_state("wide_resnet50_2")
    assert "of other shapes than a ResNet-50 (first: layer1.0.conv1.weight)" in refusal(wide)
    assert "lacks" in refusal(resnet_state("resnet18"))
    assert "lacks layer1.0.conv1.weight (its first tensor is a)" in refusal({"a": torch.zeros(1)})
    both = {f"{side}.{name}": tensor for side in ("encoder_q", "encoder_k") for name, tensor in state.items()}
    assert "holds 2 networks (encoder_k., encoder_q.)" in refusal(both)


def test_resnet50_store_remembers_its_weights(tmp_path: Path, resnet_file: Path) -> None:
    made = fit_extractor("resnet50", None, resnet_file, CPU)  # type: ignore[arg-type]
    assert made.description["weights"] == "torchvision.pth"
    assert len(made.description["sha256"]) == 64
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    again = restore_extractor(made.description, made.state, resnet_file, CPU)
    assert torch.equal(again(images), made(images))
    with pytest.raises(UserError, match=r"weights file torchvision\.pth .* give it with --extractor-weights"):
        restore_extractor(made.description, made.state, None, CPU)
    torch.save({"model": resnet_state()}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not the file the instances were made with"):
        restore_extractor(made.description, made.state, tmp_path / "other.pth", CPU)
    older = {"name": "resnet50", "h_dim": 2048, "side": 224, "filter": "bicubic", "weights": "torchvision.pth"}
    before = restore_extractor(older | {"sha256": made.description["sha256"]}, {}, resnet_file, CPU)
    assert torch.equal(before(images), made(images))
    with pytest.raises(UserError, match=r"expected torchvision IMAGENET1K_V2 \(sha256 11ad3fa6"):
        restore_extractor(older | {"weights": "torchvision IMAGENET1K_V2"}, {}, resnet_file, CPU)


def test_extractors_without_their_weights_say_so_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    for name, expected in {
        "resnet50": r"can't be fetched \(https://download\.pytorch\.org/: Network is unreachable\); .*=pca",
        "swav": r"needs its weights: --extractor-weights=FILE.*CC BY-NC",
        "resnet50-lt": r"needs its weights: --extractor-weights=FILE",
    }.items():
        with pytest.raises(UserError, match=expected):
            fit_extractor(name, None, None, CPU)  # type: ignore[arg-type]


def test_names_are_checked_without_importing_timm(monkeypatch: pytest.MonkeyPatch, patterns_zip: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in EXTRACTORS:
        check_extractor_name(name)
    assert {"pca", "dinov2", "clip", "resnet50", "swav", "resnet50-lt", "file"} == set(EXTRACTORS)
    for wrong, right in {"resnet5": "resnet50", "dinov3": "dinov2", "PCA": "pca"}.items():
        with pytest.raises(UserError, match=rf"--extractor={wrong} is unknown; .*timm:NAME.*Did you mean '{right}'"):
            check_extractor_name(wrong)
        with pytest.raises(UserError, match=rf"--extractor={wrong} is unknown"):
            fit_extractor(wrong, ImageFolderDataset(patterns_zip), None, CPU)
        with pytest.raises(UserError, match=rf"--extractor={wrong} is unknown"):
            restore_extractor({"name": wrong}, {}, None, CPU)
    with pytest.raises(UserError, match="needs timm: pip install timm"):
        check_extractor_name("timm:resnet18")
    assert canonical_name("dinov2") == "timm:vit_small_patch14_reg4_dinov2.lvd142m@224"
    assert canonical_name("pca") == "pca"


def test_features_of_a_file_cannot_be_made_of_other_images(patterns_zip: Path) -> None:
    description = {"name": "file", "h_dim": 5, "file": "own.npy", "sha256": "0" * 64}
    with pytest.raises(UserError, match=r"rows of the file own\.npy.*--instance-feats=FILE"):
        restore_extractor(description, {}, None, CPU)
    with pytest.raises(ValueError, match="FeatureFile"):
        fit_extractor("file", ImageFolderDataset(patterns_zip), None, CPU)


def test_default_extractor_depends_on_the_images_and_on_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def dataset(side: int, colour: bool) -> ImageFolderDataset:
        shape = (side, side, 3) if colour else (side, side)
        images = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(2)]
        return ImageFolderDataset(write_zip(tmp_path / f"{side}{colour}.zip", images))

    monkeypatch.setitem(sys.modules, "timm", types.ModuleType("timm"))
    monkeypatch.setitem(sys.modules, "timm.data", types.ModuleType("timm.data"))
    photographs = dataset(64, True)
    assert default_extractor(photographs)[0] == "dinov2"
    for images, reason in ((dataset(64, False), "grey"), (dataset(32, True), "32 pixels a side")):
        name, why = default_extractor(images)
        assert name == "pca"
        assert reason in why
    monkeypatch.setitem(sys.modules, "timm", None)
    name, why = default_extractor(photographs)
    assert name == "pca"
    assert "pip install timm" in why
