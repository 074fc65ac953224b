"""Exported generators give the images of the model, at other batch sizes too; nothing half-written keeps its name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Refused, invoke

import export
from stylegan2_icgan import api
from stylegan2_icgan.exporting.exemplar_archive import load_exemplars
from stylegan2_icgan.exporting.folder import read_folder
from stylegan2_icgan.exporting.inference import Fixed, InferenceGenerator, random_inputs
from stylegan2_icgan.models import load_model
from stylegan2_icgan.systems import SYSTEMS
from torch_utils.command_line import UserError
from training.checkpoint import Recipe, Snapshot, save_snapshot
from training.condition import Condition, Exemplars
from training.config import from_json
from training.system import DataShape

CPU = torch.device("cpu")
SHAPE = DataShape(img_resolution=8, img_channels=3, c_dim=3, h_dim=5)
OPTIONS: dict[str, dict[str, Any]] = {
    # 32 channels: where other convolutions could be chosen by the number of images
    "stylegan2": {"z_dim": 8, "w_dim": 8, "map_layers": 2, "channel_base": 1024, "channel_max": 32},
    "biggan": {"z_dim": 6, "ch": 4, "shared_dim": 3, "shared_dim_feat": 4, "attention": "8", "init": "normal"},
}


def write_snapshot(path: Path, system: str = "stylegan2", shape: DataShape = SHAPE) -> Path:
    """A model of random weights whose noise shows, with three exemplars."""
    torch.manual_seed(0)
    kind = SYSTEMS[system]
    generator = kind.networks["G"](from_json(kind.options, OPTIONS[system], "test"), shape)
    for name, parameter in generator.named_parameters():
        if name.endswith(("noise_strength", "gamma")):
            parameter.data.fill_(0.5)
    inputs = random_inputs(generator, 3, seed=5)
    none = torch.zeros(3, 0)
    exemplars = Exemplars(
        Condition(inputs.get("c", none), inputs.get("h", none)),
        torch.arange(3 * 3 * 64, dtype=torch.uint8).reshape(3, 3, 8, 8),
        ["a/0.png", "b/ü.png", "c.png"],
        {"name": "pca", "h_dim": shape.h_dim, "images": {}} if shape.h_dim else {},
        {"mean": torch.randn(4)} if shape.h_dim else {},
    )
    told = {"data": {"data": "/home/me/photos.zip", "cond": "instance+class"}, "dataset": {"num_images": 1234}}
    recipe = Recipe(system, OPTIONS[system], shape, told)
    save_snapshot(path, Snapshot(recipe, {"G_ema": generator.state_dict()}, exemplars, cur_nimg=5000))
    return path


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return write_snapshot(tmp_path / "network-snapshot-000005.pt")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Programs


def expected_images(snapshot: Path, num: int, **fixed: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = load_model(snapshot, CPU).generator
    inputs = random_inputs(generator, num, seed=99)
    return inputs, generator(**inputs, **{"noise_mode": "const"} | fixed)


@pytest.mark.slow
@pytest.mark.parametrize("system", OPTIONS)
def test_onnx_gives_the_images_at_any_batch_size(tmp_path: Path, system: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    snapshot, out = write_snapshot(tmp_path / "S.pt", system), tmp_path / "model.onnx"
    result = invoke(export.main, f"--network={snapshot}", f"--out={out}", "--trunc=0.7", "--trunc-cutoff=1")
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("z", ["batch", OPTIONS[system]["z_dim"]]), ("c", ["batch", 3]), ("h", ["batch", 5])
    ]  # fmt: skip
    assert [(i.name, i.shape) for i in session.get_outputs()] == [("image", ["batch", 3, 8, 8])]
    for num in (1, 5):
        inputs, expected = expected_images(snapshot, num, truncation_psi=0.7, truncation_cutoff=1)
        (image,) = session.run(["image"], {name: value.numpy() for name, value in inputs.items()})
        assert image.dtype == np.float32 and image.shape == expected.shape
        assert np.abs(image - expected.numpy()).max() < 1e-4
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    about = json.loads(next(prop.value for prop in model.metadata_props if prop.key == "stylegan2_icgan"))
    assert (about["system"], about["fixed"]["truncation_psi"]) == (system, 0.7)
    assert names_in(tmp_path) == ["S.pt", "model.onnx"]


@pytest.mark.slow
def test_a_program_gives_the_images_at_any_batch_size(tmp_path: Path) -> None:
    shape = DataShape(img_resolution=8, img_channels=1, c_dim=0, h_dim=0)
    snapshot, out = write_snapshot(tmp_path / "S.pt", "stylegan2", shape), tmp_path / "model.pt2"
    result = invoke(export.main, f"--network={snapshot}", f"--out={out}", "--noise-mode=none")
    assert result.exit_code == 0, result.output
    program = torch.export.load(out).module()
    for num in (1, 5):
        inputs, expected = expected_images(snapshot, num, noise_mode="none")
        assert set(inputs) == {"z"}
        assert torch.equal(program(**inputs), expected)


@pytest.mark.parametrize("system", OPTIONS)
def test_what_is_traced_equals_the_generator(tmp_path: Path, system: str) -> None:
    generator = load_model(write_snapshot(tmp_path / "S.pt", system), CPU).generator
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    network, inputs = InferenceGenerator(generator, Fixed(truncation_psi=0.5)), random_inputs(generator, 3, seed=1)
    assert torch.allclose(network(**inputs), generator(**inputs, truncation_psi=0.5, noise_mode="const"), atol=1e-6)
    assert not any("u0" in name for name in network.state_dict())
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())


class Untraced:
    """Stands for a torch.export program."""

    def __init__(self, run: Callable[..., torch.Tensor]) -> None:
        self.run = run

    def module(self) -> Callable[..., torch.Tensor]:
        return self.run


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda image: image.clamp(-1, 1) * 0.99 + 0.02, "differ by 0.0"),
        (lambda image: image * float("nan"), "differ by nan at batch size 1"),
        (lambda image: image[:1], "differ by inf at batch size 3"),
    ],
)
def test_other_images_than_the_models_are_never_written(
    snapshot: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, change: Any, expected: str
) -> None:
    generator = load_model(snapshot, CPU).generator

    def run(**inputs: torch.Tensor) -> torch.Tensor:
        return change(generator(**inputs, noise_mode="const"))

    monkeypatch.setattr("torch.export.export", lambda *args, **kwargs: None)
    monkeypatch.setattr("torch.export.save", lambda program, file: file.write(b"program"))
    monkeypatch.setattr("torch.export.load", lambda file: Untraced(run))
    message = refused(export.main, f"--network={snapshot}", f"--out={tmp_path / 'model.pt2'}")
    assert expected in message
    assert names_in(tmp_path) == [snapshot.name]


def test_without_the_extra_the_answer_is_one_line(
    snapshot: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = refused(export.main, f"--network={snapshot}", f"--out={tmp_path / 'model.onnx'}")
    assert "(onnxruntime is missing): pip install -e .[export]" in message


# Folders


def test_a_folder_holds_all_it_takes_and_no_path_of_this_machine(snapshot: Path, tmp_path: Path) -> None:
    out = tmp_path / "my-model"
    for _ in range(2):  # an earlier export is replaced
        assert invoke(export.main, f"--network={snapshot}", f"--out={out}").exit_code == 0
    assert names_in(out) == ["README.md", "config.json", "exemplars.npz", "model.safetensors"]
    assert names_in(tmp_path) == ["my-model", snapshot.name]
    ours, theirs = load_model(snapshot, CPU).snapshot, read_folder(out)
    assert all(torch.equal(theirs.networks["G_ema"][name], value) for name, value in ours.networks["G_ema"].items())
    assert theirs.exemplars.names == ours.exemplars.names
    assert theirs.recipe.shape == SHAPE
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: stylegan2-icgan\n")
    assert "`photos.zip`" in card and "1,234 images" in card and "float32 [N, 5]" in card
    for text in (card, (out / "config.json").read_text(encoding="utf-8")):
        assert "/home/me" not in text and str(tmp_path) not in text
    G = api.load(out, device="cpu")
    assert torch.equal(G.sample(h=G.exemplars.condition.h, c=[0, 1, 2]), api.load(snapshot, device="cpu").sample(
        h=ours.exemplars.condition.h, c=[0, 1, 2]
    ))  # fmt: skip


@pytest.mark.parametrize("system", OPTIONS)
def test_the_hubs_own_class_loads_the_folder(tmp_path: Path, system: str) -> None:
    pytest.importorskip("huggingface_hub")
    import stylegan2_icgan as icgan

    snapshot = write_snapshot(tmp_path / "S.pt", system)
    assert invoke(export.main, f"--network={snapshot}", f"--out={tmp_path / 'model'}").exit_code == 0
    network = icgan.HubGenerator.from_pretrained(tmp_path / "model")
    inputs, expected = expected_images(snapshot, 2)
    assert torch.equal(network(**inputs, noise_mode="const"), expected)
    network.save_pretrained(tmp_path / "again")  # the other way round
    again = icgan.HubGenerator.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**inputs, noise_mode="const"), expected)


def test_a_damaged_or_newer_folder_is_one_line(snapshot: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert invoke(export.main, f"--network={snapshot}", f"--out={out}").exit_code == 0

    def message(name: str, change: Callable[[bytes], bytes]) -> str:
        before = (out / name).read_bytes()
        (out / name).write_bytes(change(before))
        with pytest.raises(UserError) as caught:
            api.load(out, device="cpu")
        (out / name).write_bytes(before)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has format 2; this version reads up to 1" in message(
        "config.json", lambda text: text.replace(b'"format": 1', b'"format": 2')
    )
    assert "is of system 'other'" in message("config.json", lambda text: text.replace(b'"stylegan2"', b'"other"'))
    assert "is not whole" in message("config.json", lambda text: text.replace(b'"c_dim"', b'"d_dim"'))
    assert "is not whole" in message("model.safetensors", lambda content: content[:-7])
    assert "is no exported generator" in message("config.json", lambda text: text[:-5])
    assert "can't be read as exemplars" in message("exemplars.npz", lambda content: content[:-100])
    assert "do not fit its own description" in message(
        "config.json", lambda text: text.replace(b'"map_layers": 2', b'"map_layers": 3')
    )


def test_nothing_of_the_users_is_replaced_and_nothing_half_written_stays(
    snapshot: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = f"--network={snapshot}"
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "config.json").write_text("{}", encoding="utf-8")
    assert "folder with other content" in refused(export.main, network, f"--out={photos}")
    assert "is a file" in refused(export.main, network, f"--out={snapshot}")
    assert "is a folder" in refused(export.main, network, f"--out={photos / '..' / 'photos'}")
    (tmp_path / "x.pt2").mkdir()
    assert "is a folder; name a file" in refused(export.main, network, f"--out={tmp_path / 'x.pt2'}")
    assert "does not exist" in refused(export.main, network, f"--out={tmp_path / 'nowhere' / 'model.pt2'}")
    assert "--trunc is fixed in" in refused(export.main, network, f"--out={tmp_path / 'model'}", "--trunc=0.5")
    assert "finite psi" in refused(export.main, network, f"--out={tmp_path / 'model.pt2'}", "--trunc=nan")
    assert "does not exist" in refused(export.main, "--network=no.pt", f"--out={tmp_path / 'model.pt2'}")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    before = names_in(tmp_path)
    monkeypatch.setattr("stylegan2_icgan.exporting.folder.save_exemplars", full)
    assert "No space left" in refused(export.main, network, f"--out={tmp_path / 'model'}")
    assert names_in(tmp_path) == before


def test_exemplars_alone_are_arrays_that_numpy_reads(snapshot: Path, tmp_path: Path) -> None:
    out = tmp_path / "exemplars.npz"
    assert invoke(export.main, f"--network={snapshot}", f"--out={out}").exit_code == 0
    stored = load_model(snapshot, CPU).exemplars
    with np.load(out, allow_pickle=False) as archive:
        assert archive["names"].tolist() == ["a/0.png", "b/ü.png", "c.png"]
        assert np.array_equal(archive["images"], stored.images)
        assert np.array_equal(archive["features"], stored.condition.h)
        assert json.loads(str(archive["extractor"]))["name"] == "pca"
    back = load_exemplars(out)
    assert torch.equal(back.condition.c, stored.condition.c)
    assert torch.equal(back.extractor_state["mean"], stored.extractor_state["mean"])
