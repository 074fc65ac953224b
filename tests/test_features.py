from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from conftest import write_zip

from stylegan2_icgan.features import PcaExtractor, ResNet50Extractor, fit_extractor, load_weights, restore_extractor
from stylegan2_icgan.making import ensure_store
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


@pytest.fixture(scope="module")
def resnet_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A ResNet-50 of random weights as people have them: torchvision's .pth, wrapped with a prefix, safetensors."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    state = torchvision.models.resnet50(weights=None).state_dict()
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    torch.save(state, folder / "torchvision.pth")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, folder / "wrapped.pth")
    safetensors.torch.save_file(headless | {"projection_head.0.weight": torch.zeros(2, 2)}, folder / "swav.safetensors")
    torch.save({name: t for name, t in headless.items() if "layer3" not in name}, folder / "partial.pth")
    return {file.name: file for file in folder.iterdir()}


def test_resnet50_is_torchvisions_pooled_output(resnet_files: dict[str, Path]) -> None:
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    extractor = ResNet50Extractor(resnet_files["torchvision.pth"], CPU)
    features = extractor(images)
    assert features.shape == (2, 2048)
    network = torchvision.models.resnet50(weights=None)
    network.load_state_dict(torch.load(resnet_files["torchvision.pth"], weights_only=True))
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        expected = torch.nn.functional.normalize(network.eval()(x))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
    for name in ("wrapped.pth", "swav.safetensors"):
        assert torch.equal(ResNet50Extractor(resnet_files[name], CPU)(images), features)


def test_resnet50_store_remembers_its_weights(tmp_path: Path, resnet_files: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(4)]
    dataset = ImageFolderDataset(write_zip(tmp_path / "grey.zip", images))
    weights = resnet_files["torchvision.pth"]
    store = ensure_store(dataset, k=2, extractor="resnet50", weights=weights)
    assert store.h_dim == 2048
    description = store.manifest["extractor"]
    assert description["weights"] == "torchvision.pth"
    assert len(description["sha256"]) == 64
    assert torch.allclose(
        store.extractor(weights)(dataset.images([1]))[0], torch.from_numpy(np.array(store.features[1])), atol=1e-5
    )
    with pytest.raises(UserError, match=r"weights file torchvision\.pth .* give it with --extractor-weights"):
        store.extractor()
    with pytest.raises(UserError, match="is not the file the instances were made with"):
        ensure_store(dataset, k=2, weights=resnet_files["wrapped.pth"])


def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, resnet_files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"lacks \d+ tensors of a ResNet-50 \(first: layer3"):
        ResNet50Extractor(resnet_files["partial.pth"], CPU)
    with pytest.raises(UserError, match="does not exist"):
        load_weights(tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(resnet_files["torchvision.pth"].read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut\.pth can't be read"):
        load_weights(tmp_path / "cut.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        load_weights(tmp_path / "list.pth")


def test_published_weights_offline_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(UserError, match=r"can't be fetched .*--extractor-weights=FILE"):
        ResNet50Extractor(None, CPU)


def test_unknown_extractor_offers_the_nearest(patterns_zip: Path) -> None:
    with pytest.raises(UserError, match=r"--extractor=resnet5 is unknown.*Did you mean 'resnet50'\?"):
        fit_extractor("resnet5", ImageFolderDataset(patterns_zip), None, CPU)
