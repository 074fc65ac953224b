"""Detectors, resizing and weights: on real images, with files the tests make and a stand-in for torch-fidelity."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch

from metrics import detectors, inception, lpips
from metrics.detectors import DETECTORS, Identity, RandomProjection, make_detector
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.lpips import BLOCKS, Lpips
from metrics.resizing import FILTERS, resized
from stylegan2_icgan.evaluation.job import pick_detector
from stylegan2_icgan.evaluation.options import Flags
from torch_utils.command_line import UserError
from torch_utils.files import sha256
from torch_utils.images import decode_image, make_square
from training.dataset import ImageFolderDataset
from training.formats import open_format
from training.formats.format import SourceOptions

CPU = torch.device("cpu")
DIGITS = Path(__file__).parents[1] / "datasets" / "digits.zip"
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")


@pytest.fixture(scope="module")
def digits():
    """All 1,797, in random order: as they are, the halves are by different writers."""
    order = np.random.default_rng(0).permutation(1797)
    return ImageFolderDataset(DIGITS).images(order)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """240 of them in colour, in random order; their font is Debian's fonts-noto-color-emoji."""
    if not NOTO.exists() or not EMOJI_LIST.exists():
        pytest.skip("no Noto Color Emoji (fonts-noto-color-emoji, unicode-data)")
    lines = EMOJI_LIST.read_text(encoding="utf-8").splitlines()
    some = [line for line in lines if line.startswith("#")] + [line for line in lines if "; fully-qualified" in line][
        ::15
    ]
    path = tmp_path_factory.mktemp("emoji") / "some.txt"  # to look at all of them takes five seconds
    path.write_text("\n".join(some), encoding="utf-8")
    source, _ = open_format(NOTO, "auto", SourceOptions(emoji_list=path))
    chosen = np.random.default_rng(0).permutation(len(source.files))[:240]
    images = [make_square(decode_image(source.files[i].read()), 32).convert("RGB") for i in chosen]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def damages(images, strength):
    """What makes images worse, each in its own way: uint8, like the images."""
    x = images.float()
    blurred = torch.nn.functional.avg_pool2d(x, 2 * strength + 1, stride=1, padding=strength, count_include_pad=False)
    draw = torch.Generator().manual_seed(0)
    noisy = x + 40 * strength * torch.randn(x.shape, generator=draw)
    pale = x * (1 - 0.3 * strength) + 255 * 0.3 * strength
    few = x[: len(x) // 4**strength].repeat(4**strength, 1, 1, 1)  # of each there is more
    return {"blur": blurred, "noise": noisy, "paleness": pale, "few kinds": few}


@pytest.fixture(scope="module")
def timm_detector(tmp_path_factory):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timm") / "net.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    return pick_detector(Flags(detector="timm:test_resnet.r160_in1k", detector_weights=path), CPU, None)


@pytest.mark.parametrize("how", FILTERS)
@pytest.mark.parametrize("name", ["digits", "emoji"])
def test_distance_grows_with_the_damage_to_real_images(name, how, request):
    images, detector = request.getfixturevalue(name)[:400], RandomProjection(how)
    real = FeatureStats().append(detector.features(images))

    def distance(x):
        return frechet_distance(real, FeatureStats().append(detector.features(x.clamp(0, 255).to(torch.uint8))))

    little, much = ({kind: distance(x) for kind, x in damages(images, strength).items()} for strength in (1, 2))
    for kind in little:
        assert 1e-3 < little[kind] < much[kind], kind


@pytest.mark.parametrize("name", ["digits", "emoji"])
def test_features_of_a_network_do_not_depend_on_the_batch(name, timm_detector, request):
    images = request.getfixturevalue(name)[:6]
    alone = torch.cat([timm_detector.features(image[None]) for image in images])
    torch.testing.assert_close(timm_detector.features(images), alone, rtol=1e-4, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# Resizing.


@pytest.mark.parametrize(("size", "side"), [(64, 24), (16, 40)])
def test_clean_filter_is_pillows_on_floats(size, side):
    images = noise(2, 3, size, size)
    ours = resized(images, side, "clean")
    for image, mine in zip(images.numpy(), ours.numpy(), strict=True):
        for channel, got in zip(image, mine, strict=True):
            pillow = PIL.Image.fromarray(channel.astype(np.float32)).resize((side, side), PIL.Image.Resampling.BICUBIC)
            np.testing.assert_allclose(got, np.asarray(pillow).clip(0, 255), atol=2e-3)
    assert (ours != ours.round()).any()  # nothing is rounded


def test_tf_filter_samples_without_antialiasing():
    line = torch.tensor([0.0, 30.0, 90.0, 120.0]).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert resized(line, 2, "tf")[0, 0, 0].tolist() == [0.0, 90.0]
    assert resized(line, 8, "tf")[0, 0, 0].tolist() == [0, 15, 30, 60, 90, 105, 120, 120]
    assert resized(line, 2, "clean")[0, 0, 0, 0] > 0  # neighbours have their say


@pytest.mark.parametrize("how", FILTERS)
def test_images_of_the_right_size_are_untouched(how):
    images = noise(2, 1, 16, 16)
    assert torch.equal(resized(images, 16, how), images.float())
    with pytest.raises(ValueError, match="lanczos"):
        resized(images, 8, "lanczos")


# Detectors on real images.


@pytest.mark.parametrize("how", FILTERS)
def test_random_projection_tells_real_sets_apart(digits, how):
    detector = make_detector("random", None, how, CPU)
    features = detector.features(digits)
    assert features.shape == (1797, detector.width)
    half, other = (FeatureStats().append(part) for part in features.split(900))
    turned = FeatureStats().append(detector.features(digits[900:].flip(2)))
    assert frechet_distance(half, turned) > 10 * frechet_distance(half, other)


def test_detector_does_not_depend_on_the_batch(digits):
    detector = RandomProjection()
    whole = detector.features(digits[:10])
    torch.testing.assert_close(torch.cat([detector.features(digits[i : i + 1]) for i in range(10)]), whole)
    assert torch.equal(detector.features(digits[:10].expand(-1, 3, -1, -1)), whole)  # grey is grey in colour, too


def test_identity_passes_rows_on():
    rows = torch.randn(3, 5, dtype=torch.float64)
    assert torch.equal(Identity(5).features(rows), rows.float())
    with pytest.raises(UserError, match="no logits"):
        Identity(5).logits(rows)


def test_unknown_detector_and_filter_are_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"--detector=inceptoin is unknown; .* Did you mean 'inception'\?"):
        make_detector("inceptoin", None, "clean", CPU)
    with pytest.raises(UserError, match=r"Did you mean 'clean'\?"):
        make_detector("random", None, "lean", CPU)
    with pytest.raises(UserError, match="has no weights"):
        make_detector("random", Path("x"), "clean", CPU)
    assert "inception" in DETECTORS


# Inception by a stand-in for torch-fidelity.


class StandIn(torch.nn.Module):
    """Takes what torch-fidelity's module takes, refuses what it refuses."""

    loaded: list[str] = []  # noqa: RUF012 - what was opened, over all instances

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        StandIn.loaded.append(feature_extractor_weights_path)
        self.Conv2d_1a_3x3 = torch.nn.Identity()

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 299, 299)
        seen = self.Conv2d_1a_3x3((x.float() - 128) / 128)
        return seen.mean(dim=(2, 3)).repeat(1, 700)[:, :2048], seen.amax(dim=(2, 3))


@pytest.fixture
def fidelity(monkeypatch, tmp_path):
    """torch-fidelity with the stand-in, and a file that passes for the published weights."""
    package, module = types.ModuleType("torch_fidelity"), types.ModuleType("extractor")
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    path = tmp_path / "inception.pth"
    path.write_bytes(b"weights of 2015")
    monkeypatch.setattr(inception, "WEIGHTS", replace(inception.WEIGHTS, sha256=sha256(path)))
    StandIn.loaded.clear()
    return path


def test_inception_sees_our_resize_unrounded(fidelity):
    images = noise(2, 3, 64, 64)
    features = {how: make_detector("inception", fidelity, how, CPU).features(images) for how in FILTERS}
    expected = ((resized(images, 299, "clean") - 128) / 128).mean(dim=(2, 3))
    torch.testing.assert_close(features["clean"][:, :3], expected)
    assert not torch.equal(features["clean"], features["tf"])
    detector = make_detector("inception", fidelity, "tf", CPU)
    assert detector.description["filter"] == "tf"
    assert detector.description["sha256"] == sha256(fidelity)
    assert detector.logits(images).shape == (2, 3)
    assert features["tf"].shape == (2, 2048)


def test_inception_weights_are_checked_before_they_are_loaded(fidelity):
    fidelity.write_bytes(b"weights of 20")  # cut short
    with pytest.raises(UserError, match=r"has SHA-256 .*, expected .*nothing in it was loaded"):
        make_detector("inception", fidelity, "clean", CPU)
    with pytest.raises(UserError, match=r"--detector-weights=.*none.pth does not exist"):
        make_detector("inception", fidelity.with_name("none.pth"), "clean", CPU)
    assert StandIn.loaded == []


def test_inception_without_torch_fidelity_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match="pip install torch-fidelity"):
        make_detector("inception", None, "clean", CPU)


# Weights.


def test_vgg16_refuses_other_weights(tmp_path):
    path = tmp_path / "vgg.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"expected 397923af8e79"):
        make_detector("vgg16", path, "clean", CPU)


def test_vgg16_gives_what_stands_before_its_last_layer(tmp_path, monkeypatch, digits):
    import torchvision

    class Tiny(torch.nn.Module):
        def __init__(self, weights=None):
            super().__init__()
            self.classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 224**2, 2))

        def forward(self, x):
            return self.classifier(x)

    path = tmp_path / "vgg.pth"
    torch.save(Tiny().state_dict(), path)
    monkeypatch.setattr(torchvision.models, "vgg16", Tiny)
    monkeypatch.setattr(detectors, "VGG16", replace(lpips.VGG16, sha256=sha256(path)))
    detector = make_detector("vgg16", path, "clean", CPU)
    seen = detector.features(digits[:2])  # the last layer is gone: the preprocessed pixels themselves
    channels = seen.view(2, 3, 224, 224).double()
    brightness = float(resized(digits[:2], 224, "clean").double().mean()) / 255
    assert float(channels[:, 1].mean()) * 0.224 + 0.456 == pytest.approx(brightness, abs=1e-5)
    assert detector.description["sha256"] == sha256(path)


# LPIPS.


@pytest.fixture(scope="module")
def vgg():
    """Random weights by their published names, narrow: the widths are those of `BLOCKS` over 16."""
    draw = torch.Generator().manual_seed(0)
    narrow = tuple(tuple(width // 16 for width in widths) for widths in BLOCKS)
    tensors, width_in, number = {}, 3, 0
    for level, widths in enumerate(narrow):
        for width in widths:
            tensors[f"features.{number}.weight"] = torch.randn(width, width_in, 3, 3, generator=draw) / (
                3 * width_in**0.5
            )
            tensors[f"features.{number}.bias"] = torch.randn(width, generator=draw) * 0.1
            width_in, number = width, number + 2
        number += 1
        tensors[f"lin{level}.model.1.weight"] = torch.rand(1, width_in, 1, 1, generator=draw)
    return narrow, tensors


@pytest.fixture
def narrow_lpips(vgg, monkeypatch):
    monkeypatch.setattr(lpips, "BLOCKS", vgg[0])
    return Lpips(vgg[1], {})


def test_lpips_equals_the_definition(vgg, narrow_lpips):
    """Equation 1 with torchvision's own layers, one image and one level after the other."""
    from torchvision.models.vgg import make_layers

    widths, tensors = vgg
    layers = make_layers([item for block in widths for item in (*block, "M")], batch_norm=False)
    layers.load_state_dict({k.removeprefix("features."): v for k, v in tensors.items() if k.startswith("features.")})
    a, b = noise(3, 3, 32, 32), noise(3, 3, 32, 32, seed=1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (lpips.SHIFT, lpips.SCALE))
    x, y = (((images / 127.5 - 1) - mean) / std for images in (a, b))
    expected, level = torch.zeros(3), 0
    for number, layer in enumerate(layers):
        x, y = layer(x), layer(y)
        if number in (3, 8, 15, 22, 29):
            apart = (torch.nn.functional.normalize(x) - torch.nn.functional.normalize(y)).square()
            expected += torch.einsum("nchw,c->nhw", apart, tensors[f"lin{level}.model.1.weight"].flatten()).mean((1, 2))
            level += 1
    assert level == 5
    torch.testing.assert_close(narrow_lpips(a, b), expected)


def test_lpips_is_a_distance(narrow_lpips, digits):
    a, b = digits[:5].float(), digits[5:10].float()
    assert narrow_lpips(a, a).abs().max() == 0
    torch.testing.assert_close(narrow_lpips(a, b), narrow_lpips(b, a))
    near, far = narrow_lpips(a, a + 4), narrow_lpips(a, b)
    assert (near < far).all()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_lpips_takes_one_file_or_two(vgg, monkeypatch, tmp_path, suffix):
    monkeypatch.setattr(lpips, "BLOCKS", vgg[0])
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    trunk = {k: v for k, v in vgg[1].items() if k.startswith("features")}
    heads = {k: v for k, v in vgg[1].items() if k.startswith("lin")}
    paths = [tmp_path / f"{name}{suffix}" for name in ("both", "trunk", "heads")]
    for path, content in zip(paths, (vgg[1], trunk, heads), strict=True):
        save(content, path)
    one, two = Lpips.load(paths[:1], CPU), Lpips.load(paths[1:], CPU)
    a, b = noise(2, 3, 16, 16), noise(2, 3, 16, 16, seed=1)
    assert torch.equal(one(a, b), two(a, b))
    assert two.description["weights"][1] == {"file": f"heads{suffix}", "sha256": sha256(paths[2])}
    assert not two.description["published"]
    with pytest.raises(UserError, match=r"not LPIPS's weights .*lin0"):
        Lpips.load(paths[1:2], CPU)


def test_lpips_refuses_what_is_no_state_dict(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"--lpips-weights=.* can't be read"):
        Lpips.load([path], CPU)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds no state dict"):
        Lpips.load([path], CPU)
    with pytest.raises(UserError, match="does not exist"):
        Lpips.load([path.with_name("none")], CPU)
