"""Networks of timm as extractors, on files of random weights that the tests make: nothing is fetched."""

import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch

timm = pytest.importorskip("timm")
pytest.importorskip("timm.data")

from stylegan2_icgan.extractors.extractor import normalise  # noqa: E402
from stylegan2_icgan.extractors.networks import NetworkExtractor  # noqa: E402
from stylegan2_icgan.extractors.preprocessing import Preprocessing  # noqa: E402
from stylegan2_icgan.features import (  # noqa: E402
    check_extractor_name,
    fit_extractor,
    made_alike,
    restore_extractor,
)
from torch_utils.command_line import UserError  # noqa: E402
from torch_utils.weights import load_weights  # noqa: E402

CPU = torch.device("cpu")
VIT = "timm:test_vit.r160_in1k"


def random_network(name: str = "test_vit", **options: int) -> torch.nn.Module:
    torch.manual_seed(0)
    network: torch.nn.Module = timm.create_model(name, **options)
    for parameter in network.parameters():  # also those that start as zeros or ones, and may make a branch silent
        torch.nn.init.normal_(parameter, mean=0.3 if parameter.ndim == 1 else 0, std=0.3)
    return network.eval()


def random_images(count: int = 3, side: int = 96, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    safetensors.torch.save_file(random_network().state_dict(), path)
    return path


def extractor_of(path: Path, name: str = VIT) -> NetworkExtractor:
    return NetworkExtractor.make(name, path, CPU)


def refusal(path: Path | None, name: str = VIT) -> str:
    with pytest.raises(UserError) as caught:
        NetworkExtractor.make(name, path, CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


# -- preprocessing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (168, 168), (200, 200), (300, 300), (140, 90)])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "interpolation", "side"),
    [
        ("center", 0.95, "bicubic", 160),
        ("center", 0.875, "bilinear", 96),
        ("squash", 1.0, "bicubic", 112),
        ("squash", 0.9, "bicubic", 112),
        ("border", 0.9, "bicubic", 128),
        ("border", 1.0, "bicubic", 128),
    ],
)
def test_preprocessing_is_timms(
    size: tuple[int, int], crop_mode: str, crop_pct: float, interpolation: str, side: int
) -> None:
    """Against timm's own transform, which resizes with Pillow and rounds to 8 bits: within half a level on average."""
    config = {"input_size": (3, side, side), "interpolation": interpolation, "crop_pct": crop_pct}
    config |= {"crop_mode": crop_mode, "mean": (0.48, 0.45, 0.4), "std": (0.26, 0.26, 0.27)}
    rough = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    smooth = np.asarray(PIL.Image.fromarray(rough).resize(size[::-1], PIL.Image.Resampling.BICUBIC))
    noise = np.random.default_rng(1).integers(-60, 60, smooth.shape)
    pixels = np.clip(smooth.astype(int) + noise, 0, 255).astype(np.uint8)
    expected = timm.data.create_transform(**config, is_training=False)(PIL.Image.fromarray(pixels))
    ours = Preprocessing.from_timm(config)(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    assert ours.shape == expected.shape == (3, side, side)
    levels = (ours - expected).abs() * torch.tensor(config["std"]).view(3, 1, 1) * 255
    assert levels.mean() < 0.5
    assert (levels > 1.5).float().mean() < 0.02  # Pillow cuts off overshoots between its two passes, too


def test_preprocessing_survives_json_and_refuses_what_it_cannot_do() -> None:
    config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg("test_vit.r160_in1k").to_dict())
    made = Preprocessing.from_timm(config)
    assert Preprocessing.from_json(made.json()) == made
    assert (made.size, made.scaled) == ((160, 160), (168, 168))
    for change in ({"interpolation": "lanczos"}, {"crop_mode": "random"}):
        with pytest.raises(ValueError, match="not known here"):
            Preprocessing.from_timm(config | change)


# -- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_features_are_the_pooled_output_of_the_network(tmp_path: Path, name: str) -> None:
    network = random_network(name)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = fit_extractor(f"timm:{name}", None, tmp_path / "weights.pth", CPU)  # type: ignore[arg-type]
    images = random_images()
    features = extractor(images)
    network.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    seen = torch.stack([transform(PIL.Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    with torch.no_grad():
        expected = normalise(network(seen))
    assert features.shape == (3, extractor.h_dim) == expected.shape
    assert features.dtype == torch.float32
    assert ((features * expected).sum(dim=1) > 0.999).all()
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert (features[0] - features[1]).abs().max() > 1e-3  # not the same for every image


def test_an_image_has_its_feature_whatever_stands_beside_it(vit_file: Path) -> None:
    extractor, images = extractor_of(vit_file), random_images(5)
    alone = torch.cat([extractor(image[None]) for image in images])
    torch.testing.assert_close(extractor(images), alone, atol=1e-5, rtol=0)
    assert torch.equal(extractor(images), extractor(images))
    mirrored = extractor(images.flip(3))
    assert (mirrored - alone).abs().max() > 1e-3
    torch.testing.assert_close(extractor(images.flip(3).flip(3)), alone, atol=1e-5, rtol=0)


def test_grey_images_are_seen_as_grey_colour(vit_file: Path) -> None:
    extractor, grey = extractor_of(vit_file), random_images(2, channels=1)
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


def test_a_side_of_the_users_own(vit_file: Path) -> None:
    native, small = extractor_of(vit_file), extractor_of(vit_file, f"{VIT}@64")
    assert (native.preprocessing.size, small.preprocessing.size) == ((160, 160), (64, 64))
    assert small.description["name"] == f"{VIT}@64"
    assert small(random_images()).shape == (3, small.h_dim)
    assert not made_alike(native.description, small.description)
    with pytest.raises(UserError, match=r"can't take images of 65x65 pixels: .*divisible by patch size"):
        extractor_of(vit_file, f"{VIT}@65")
    for side in ("0", "x", "-3", "99999"):
        assert f"{side!r} after @ is no size" in refusal(vit_file, f"{VIT}@{side}")


def test_batch_shrinks_with_the_size_of_images(vit_file: Path) -> None:
    assert extractor_of(vit_file).batch == 64
    assert extractor_of(vit_file, f"{VIT}@448").batch == 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_on_cuda_are_those_of_the_cpu(vit_file: Path, tmp_path: Path) -> None:
    torch.save(random_network("test_resnet").state_dict(), tmp_path / "resnet.pth")
    for name, file in ((VIT, vit_file), ("timm:test_resnet", tmp_path / "resnet.pth")):
        on_cpu = NetworkExtractor.make(name, file, CPU)(random_images())
        extractor = NetworkExtractor.make(name, file, torch.device("cuda"))
        on_cuda = extractor(random_images())
        assert on_cuda.is_cuda
        assert extractor.batch == 256
        torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=1e-4, rtol=0)


# -- weights ----------------------------------------------------------------------------------------------------------


def test_weights_as_people_have_them_give_the_same_features(tmp_path: Path, vit_file: Path) -> None:
    """With a head of other classes or none, wrapped by training, half precision where the weights allow it."""
    state = safetensors.torch.load_file(vit_file)
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    ten = headless | {"head.weight": torch.ones(10, 64), "head.bias": torch.ones(10)}
    wrapped = {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}
    files = {
        "headless.pth": headless,
        "ten.pth": {"state_dict": ten, "epoch": 3, "args": Namespace(lr=0.1)},
        "averaged.pth": {"state_dict": random_network(num_classes=3).state_dict(), "state_dict_ema": wrapped},
        "model.pth": {"model": wrapped},
    }
    expected = extractor_of(vit_file)(random_images())
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        assert torch.equal(extractor_of(tmp_path / name)(random_images()), expected), name
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pth")
    half = extractor_of(tmp_path / "half.pth")(random_images())
    assert half.dtype == torch.float32
    assert ((half * expected).sum(dim=1) > 0.999).all()


def openai_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The image tower of CLIP as OpenAI stores it: the classifier is a projection, transposed and without bias."""
    table = {"patch_embed.proj": "conv1", "norm_pre": "ln_pre", "blocks.": "transformer.resblocks.", "norm1": "ln_1"}
    table |= {"norm2": "ln_2", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc"}
    table |= {"mlp.fc2": "mlp.c_proj", "pos_embed": "positional_embedding", "cls_token": "class_embedding"}
    theirs = {}
    for name, tensor in state.items():
        for ours, their in table.items():
            name = name.replace(ours, their)
        theirs["visual." + (f"ln_post.{name[5:]}" if name.startswith("norm.") else name)] = tensor
    theirs["visual.class_embedding"] = theirs["visual.class_embedding"][0, 0]
    theirs["visual.positional_embedding"] = theirs["visual.positional_embedding"][0]
    del theirs["visual.head.bias"]
    return theirs | {"visual.proj": theirs.pop("visual.head.weight").T, "logit_scale": torch.ones(())}


@pytest.mark.slow
def test_clips_own_file_is_read_and_its_projection_dropped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("vit_base_patch32_clip_quickgelu_224.openai").state_dict()
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "timm.pth")
    torch.save({name: tensor.half() for name, tensor in openai_names(state).items()}, tmp_path / "openai.pth")
    ours, theirs = (fit_extractor("clip", None, tmp_path / f"{n}.pth", CPU) for n in ("timm", "openai"))  # type: ignore[arg-type]
    assert ours.h_dim == theirs.h_dim == 768
    assert torch.equal(ours(random_images(1)), theirs(random_images(1)))


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, vit_file: Path) -> None:
    torch.save(random_network("test_resnet").state_dict(), tmp_path / "resnet.pth")
    message = refusal(tmp_path / "resnet.pth")
    assert message.startswith(f"--extractor-weights={tmp_path / 'resnet.pth'} does not fit --extractor={VIT}: ")
    state = safetensors.torch.load_file(vit_file)
    torch.save({n: t for n, t in state.items() if n != "blocks.2.norm1.weight"}, tmp_path / "lacks.pth")
    assert "blocks.2.norm1.weight" in refusal(tmp_path / "lacks.pth")
    torch.save(state | {"blocks.2.norm1.weight": torch.zeros(3)}, tmp_path / "shape.pth")
    assert "blocks.2.norm1.weight" in refusal(tmp_path / "shape.pth")
    torch.save(state | {"norm.weight": state["norm.weight"] * torch.nan}, tmp_path / "nan.pth")
    assert "values that are not finite" in refusal(tmp_path / "nan.pth")


def test_files_that_hold_no_weights_are_refused(tmp_path: Path, vit_file: Path) -> None:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    assert "does not exist" in refusal(tmp_path / "none.pth")
    torch.save(safetensors.torch.load_file(vit_file), tmp_path / "whole.pth")
    assert "cut.pth can't be read" in refusal(write("cut.pth", (tmp_path / "whole.pth").read_bytes()[:-500]))
    assert "can't be read" in refusal(write("cut.safetensors", vit_file.read_bytes()[:-4]))
    assert "can't be read" in refusal(write("page.pth", b"<html>404</html>"))
    assert "can't be read" in refusal(write("empty.pth", b""))
    for number, content in enumerate(([1, 2], {}, {"epoch": 3}, {"state_dict": {"a": "b"}})):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match="holds no state dict"):
            load_weights(tmp_path / f"{number}.pth", "--x")


class Bomb:
    """Unpickled carelessly it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": Bomb(tmp_path / "executed")}, tmp_path / "bomb.pth")
    assert "holds objects beside tensors (" in refusal(tmp_path / "bomb.pth")
    assert not (tmp_path / "executed").exists()


# -- descriptions -----------------------------------------------------------------------------------------------------


def test_a_description_brings_the_same_features_back(vit_file: Path, tmp_path: Path) -> None:
    made = extractor_of(vit_file)
    description = made.description | {"images": {"filter": "lanczos"}}  # as the manifest keeps it
    assert description["origin"] == "file"
    assert description["weights"] == "vit.safetensors"
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(vit_file.read_bytes())
    again = restore_extractor(description, made.state, moved, CPU)
    assert torch.equal(again(random_images()), made(random_images()))
    assert again.description == description
    assert made_alike(extractor_of(moved).description, made.description)


def test_restoring_keeps_to_the_preprocessing_of_the_description(vit_file: Path) -> None:
    """A later timm may configure the model anew; stored features must still be met."""
    made = extractor_of(vit_file)
    changed = made.description | {"preprocessing": made.description["preprocessing"] | {"mean": [0.1, 0.1, 0.1]}}
    other = restore_extractor(changed, {}, vit_file, CPU)
    assert (other(random_images()) - made(random_images())).abs().max() > 1e-3
    assert not made_alike(changed, made.description)


def test_restoring_refuses_other_weights(vit_file: Path, tmp_path: Path) -> None:
    made = extractor_of(vit_file)
    with pytest.raises(UserError, match=r"weights file vit\.safetensors .* give it with --extractor-weights=FILE"):
        restore_extractor(made.description, {}, None, CPU)
    state = safetensors.torch.load_file(vit_file)
    torch.save(state, tmp_path / "repacked.pth")
    with pytest.raises(UserError, match=r"is not the file the instances were made with: expected vit\.safetensors"):
        restore_extractor(made.description, {}, tmp_path / "repacked.pth", CPU)


def cache_published(folder: Path, vit_file: Path, commit: str) -> None:
    """Put a file where the hub's client keeps the weights of VIT."""
    repository = folder / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "model.safetensors").write_bytes(vit_file.read_bytes())


def test_published_weights_are_taken_from_the_cache_and_kept_to(
    vit_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "(HF_HUB_OFFLINE is set)" in refusal(None)
    first, second = "a" * 40, "b" * 40
    cache_published(tmp_path / "hub", vit_file, first)
    made = NetworkExtractor.make(VIT, None, CPU)
    assert made.description["origin"] == f"huggingface timm/test_vit.r160_in1k@{first}"
    assert made.description["licence"] == "apache-2.0"
    assert torch.equal(made(random_images()), extractor_of(vit_file)(random_images()))
    assert made_alike(made.description, extractor_of(vit_file).description)

    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(random_network(num_classes=0).state_dict(), other)
    cache_published(tmp_path / "hub", other, second)  # published anew
    assert NetworkExtractor.make(VIT, None, CPU).description["origin"].endswith(f"@{second}")
    for weights in (None, vit_file):  # the commit it was made with, or the same file by hand
        again = restore_extractor(made.description, {}, weights, CPU)
        assert torch.equal(again(random_images()), made(random_images()))
    with pytest.raises(UserError, match="is not the file the instances were made with"):
        restore_extractor(made.description, {}, other, CPU)
    unknown = made.description | {"origin": f"huggingface timm/test_vit.r160_in1k@{'c' * 40}"}
    with pytest.raises(UserError, match=r"give a copy of model\.safetensors \(sha256 .*\) with --extractor-weights"):
        restore_extractor(unknown, {}, None, CPU)


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_of_networks_are_checked_against_timm() -> None:
    for name in (VIT, "timm:resnet50", "timm:vit_small_patch14_reg4_dinov2.lvd142m@224"):
        check_extractor_name(name)
    with pytest.raises(UserError, match=r"has no 'vit_smal_patch14_dinov2'\. Did you mean 'vit_small_patch14_dinov2'"):
        check_extractor_name("timm:vit_smal_patch14_dinov2")
    with pytest.raises(UserError, match=r"no weights 'r161_in1k' of test_vit; there are: r160_in1k"):
        check_extractor_name("timm:test_vit.r161_in1k")
    with pytest.raises(UserError, match="has no ''"):
        check_extractor_name("timm:")
    with pytest.raises(UserError, match=r"timm publishes no weights for it; give a local file"):
        NetworkExtractor.make("timm:test_vit4", None, CPU)


def test_aliases_are_networks_that_timm_has() -> None:
    from stylegan2_icgan.extractors.timm_networks import published
    from stylegan2_icgan.features import ALIASES

    assert {name: str(published(full)) for name, full in ALIASES.items()} == {
        "dinov2": "timm/vit_small_patch14_reg4_dinov2.lvd142m on the Hugging Face hub",
        "clip": "timm/vit_base_patch32_clip_224.openai on the Hugging Face hub",
    }


def test_without_timm_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in (VIT, "dinov2", "clip"):
        with pytest.raises(UserError, match="needs timm: pip install timm"):
            fit_extractor(name, SimpleNamespace(), None, CPU)  # type: ignore[arg-type]


@pytest.mark.slow
def test_dinov2_takes_its_weights_for_518_pixels_at_224(tmp_path: Path) -> None:
    network = random_network("vit_small_patch14_reg4_dinov2.lvd142m")
    assert network.pos_embed.shape[1] == 37 * 37
    torch.save({name: tensor.half() for name, tensor in network.state_dict().items()}, tmp_path / "dinov2.pth")
    extractor = fit_extractor("dinov2", None, tmp_path / "dinov2.pth", CPU)  # type: ignore[arg-type]
    assert isinstance(extractor, NetworkExtractor)
    assert extractor.network.pos_embed.shape[1] == 16 * 16
    assert extractor.description["preprocessing"]["size"] == [224, 224]
    assert extractor(random_images(1)).shape == (1, 384)
