"""What demo.py answers, how it refuses, and what its page is sent, without a browser."""

import dataclasses
import io
import socket
import sys
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import Refused, invoke, pattern_images

import demo
import generate
import interpolate
from stylegan2_icgan.demo_page import answers as answers_module
from stylegan2_icgan.demo_page.answers import FRAMES, Answers, Settings, Shown, as_sheet, as_zip, check_upload
from stylegan2_icgan.extractors.extractor import Extractor
from stylegan2_icgan.features import restore_extractor
from stylegan2_icgan.models import load_model, open_model
from torch_utils.command_line import UserError
from training.condition import Exemplars

CPU = torch.device("cpu")


def answers_of(path: Path, data: Path | None = None) -> Answers:
    return Answers(open_model(path, "cpu", "auto"), data, num_nearest=3)


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("none", ""),
        ("class", "class00002-"),
        ("instance", "exemplar00002-"),
        ("instance+class", "exemplar00002-"),
        ("biggan", "exemplar00002-"),
    ],
)
def test_samples_are_the_images_of_generate(trained: dict[str, Path], tmp_path: Path, kind: str, name: str) -> None:
    answers = answers_of(trained[kind])
    number = 2 if answers.num_instances else 0
    one, other = answers.instance(number), answers.instance(min(1, number))
    shown = answers.samples(one, other, Settings(trunc=0.7, seed=3, count=2))
    flags = [f"--network={trained[kind]}", "--trunc=0.7", "--seeds=3,4", f"--outdir={tmp_path}"]
    flags += [f"--instances=exemplars:{number}"] if answers.num_instances else []
    assert invoke(generate.main, *flags).exit_code == 0
    assert shown.names == [f"{name}seed0003", f"{name}seed0004"]
    for image, stem in zip(shown.images, shown.names, strict=True):
        assert np.array_equal(image[0].numpy(), pixels(tmp_path / f"{stem}.png"))


@pytest.mark.parametrize("kind", ["none", "class", "instance", "instance+class"])
def test_the_strip_is_the_walk_of_interpolate(trained: dict[str, Path], tmp_path: Path, kind: str) -> None:
    answers = answers_of(trained[kind])
    numbers = (1, 3) if answers.num_instances else (0, 0)
    a, b = (answers.instance(number) for number in numbers)
    shown = answers.strip(a, b, Settings(seed=5))
    where = ["--seeds=5", "--instances=exemplars:1,3"] if answers.num_instances else ["--seeds=5,6"]
    walk = [f"--network={trained[kind]}", *where, f"--frames={FRAMES - 1}", "--format=frames", f"--outdir={tmp_path}"]
    assert invoke(interpolate.main, *walk).exit_code == 0
    frames = [pixels(path) for path in sorted((tmp_path / "frames").iterdir())]
    assert np.array_equal(shown.images[:, 0].numpy(), np.stack(frames))
    if answers.num_instances:  # the mix is a place on the way
        middle = answers.samples(a, b, Settings(seed=5, count=1, mix=2 / (FRAMES - 1)))
        assert torch.equal(middle.images[0], shown.images[2])
        assert torch.equal(answers.samples(a, b, Settings(seed=5, count=1, mix=1)).images[0], shown.images[-1])


def test_nearest_are_of_the_snapshot_or_of_the_data(trained: dict[str, Path]) -> None:
    answers = answers_of(trained["instance"])
    stored = answers.model.exemplars
    a, b = answers.instance(4), answers.instance(9)
    cosines = stored.condition.h.double() @ stored.condition.h[4].double()
    cosines[4] = -2
    shown = answers.nearest(a, b, Settings())
    assert shown.names == [f"exemplar{i:05d}" for i in cosines.argsort(descending=True)[:3].tolist()]
    assert torch.equal(shown.images[0], stored.images[int(shown.names[0][-5:])])
    assert answers.nearest(a, b, Settings(mix=1)).names != shown.names

    of_data = answers_of(trained["instance"], trained["data"]).nearest(a, b, Settings())
    assert len(of_data.images) == 3
    assert all(name.endswith(".png") for name in of_data.names)
    assert not answers_of(trained["class"]).has_nearest


def test_an_image_that_is_sent_becomes_the_instance_it_is(trained: dict[str, Path], tmp_path: Path) -> None:
    answers = answers_of(trained["instance"])
    known = answers.instance(6)
    PIL.Image.fromarray(known.images[0, 0, 0].numpy()).save(tmp_path / "seven.png")
    sent = answers.uploaded(tmp_path / "seven.png")
    assert sent.names == ["seven"]
    assert torch.equal(sent.images, known.images)
    assert torch.allclose(sent.condition.h, known.condition.h, atol=1e-5)
    assert answers_of(trained["class"]).no_uploads


def test_a_class_can_be_chosen_beside_the_instance(trained: dict[str, Path], tmp_path: Path) -> None:
    answers = answers_of(trained["instance+class"])
    a = answers.instance(0)
    PIL.Image.fromarray(a.images[0, 0, 0].numpy()).save(tmp_path / "own.png")
    sent = answers.uploaded(tmp_path / "own.png")
    own = int(a.condition.c.argmax())
    images = [answers.samples(a, a, Settings(count=1, label=label)).images for label in (None, own, (own + 1) % 4)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    with pytest.raises(UserError, match="'own' brings no class: choose one"):
        answers.samples(sent, a, Settings())
    assert answers.samples(sent, a, Settings(mix=1, count=1)).names == ["exemplar00000-seed0000"]
    for label in (4, -1):
        with pytest.raises(UserError, match="no class"):
            answers.samples(a, a, Settings(label=label))
    with pytest.raises(UserError, match="no class"):
        answers_of(trained["instance"]).samples(a, a, Settings(label=0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"trunc": float("nan")},
        {"trunc": 1.1},
        {"mix": -0.1},
        {"count": 0},
        {"count": 17},
        {"seed": -1},
        {"seed": 1 << 32},
    ],
)
def test_what_no_control_says_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="expected"):
        Settings(**wrong)  # type: ignore[arg-type]


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG whose header says it is large."""
    buffer = io.BytesIO()
    PIL.Image.new("L", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_wrong_uploads_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    PIL.Image.fromarray(noise).save(buffer, "PNG")
    tiff = io.BytesIO()
    PIL.Image.fromarray(noise).save(tiff, "TIFF")
    wrong = {
        "words.png": (b"not an image", "is not an image"),
        "empty.png": (b"", "0 bytes"),
        "cut.png": (buffer.getvalue()[:2000], "damaged or truncated"),
        "other.png": (tiff.getvalue(), "is not an image that can be read here. Send PNG, JPEG"),
        "large.png": (png_claiming(9000, 9000), "9000 x 9000 pixels. Send one of at most 50 million"),
        "bomb.png": (png_claiming(60000, 60000), "far too many pixels"),
    }
    for name, (data, expected) in wrong.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as refused:
            check_upload(tmp_path / name)
        assert str(refused.value).startswith(name)
        assert expected in str(refused.value)
    (tmp_path / "fine.png").write_bytes(buffer.getvalue())
    check_upload(tmp_path / "fine.png")
    monkeypatch.setattr(answers_module, "UPLOAD_BYTES", 1000)
    with pytest.raises(UserError, match=r"fine\.png has 0 MB"):
        check_upload(tmp_path / "fine.png")


def test_requests_at_the_same_time_get_their_own_images(trained: dict[str, Path]) -> None:
    answers = answers_of(trained["instance"])
    asked = [(answers.instance(i), Settings(seed=i, count=4, trunc=0.5 + i / 20)) for i in range(6)]
    alone = [answers.samples(rows, rows, settings).images for rows, settings in asked]
    together: dict[int, torch.Tensor] = {}

    def ask(number: int) -> None:
        rows, settings = asked[number]
        together[number] = answers.samples(rows, rows, settings).images

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[number], images) for number, images in enumerate(alone))
    assert not torch.equal(alone[0], alone[1])


def test_the_extractor_is_loaded_once(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def restore(*args: Any) -> Extractor:
        loaded.append(args[0]["name"])
        return restore_extractor(*args)

    monkeypatch.setattr("stylegan2_icgan.models.restore_extractor", restore)
    answers = answers_of(trained["instance"])
    for number, image in enumerate(pattern_images(2)[0]):
        PIL.Image.fromarray(image).save(tmp_path / f"{number}.png")
        assert answers.uploaded(tmp_path / f"{number}.png").names == [str(number)]
    assert loaded == ["pca"]


def test_downloads_hold_the_images(trained: dict[str, Path]) -> None:
    answers = answers_of(trained["instance"])
    a = answers.instance(1)
    shown = answers.samples(a, a, Settings(count=3))
    with zipfile.ZipFile(io.BytesIO(as_zip(shown))) as archive:
        assert archive.namelist() == [f"exemplar00001-seed000{seed}.png" for seed in range(3)]
        for name, image in zip(archive.namelist(), shown.images, strict=True):
            assert np.array_equal(np.asarray(PIL.Image.open(archive.open(name))), image[0].numpy())
    with PIL.Image.open(io.BytesIO(as_sheet(shown, [a]))) as picture:
        assert picture.size == ((4 * 8 + 4) * 8, 64)  # the instance, a gap, three samples of 8 pixels; enlarged
        assert np.array_equal(np.asarray(picture)[::8, :64:8], a.images[0, 0, 0].numpy())
    with PIL.Image.open(io.BytesIO(as_sheet(Shown(shown.images, shown.names), []))) as picture:
        assert picture.size == (3 * 64, 64)


def test_wrong_flags_are_one_line(
    trained: dict[str, Path], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "stylegan2_icgan.demo_page.page", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        network = f"--network={trained['instance']}"
        assert f"--port={port} is in use" in refused(demo.main, network, f"--port={port}")
    free = f"--port={port}"
    assert "--port=0" in refused(demo.main, network, "--port=0")
    assert "--nearest=0" in refused(demo.main, network, "--nearest=0")
    assert "192.0.2.1" in refused(demo.main, network, free, "--host=192.0.2.1")
    assert "nowhere.pt" in refused(demo.main, f"--network={tmp_path / 'nowhere.pt'}", free)
    (tmp_path / "foreign.pt").write_bytes(b"no snapshot")
    assert "foreign.pt" in refused(demo.main, f"--network={tmp_path / 'foreign.pt'}", free)
    message = refused(demo.main, network, free)
    assert "pip install" in message
    assert "gradio" in message


def test_flags_of_another_model_are_refused(trained: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="--nearest=3: this model is not conditioned on instances"):
        answers_of(trained["class"], trained["data"])
    with pytest.raises(UserError, match=r"--extractor-weights=w\.pth: this model has no extractor"):
        Answers(load_model(trained["none"], CPU), extractor_weights=Path("w.pth"))


def test_a_snapshot_without_exemplars_is_refused(trained: dict[str, Path]) -> None:
    model = load_model(trained["instance"], CPU)
    bare = Exemplars(model.exemplars.condition[:0], model.exemplars.images[:0], [], model.exemplars.extractor)
    model = dataclasses.replace(model, snapshot=dataclasses.replace(model.snapshot, exemplars=bare))
    with pytest.raises(UserError, match="has no exemplars to pick from"):
        Answers(model)


@pytest.mark.slow
def test_visitors_are_answered_over_http(trained: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    client, httpx = pytest.importorskip("gradio_client"), pytest.importorskip("httpx")
    from stylegan2_icgan.demo_page.page import Page, launch_arguments

    answers = answers_of(trained["instance"])
    page = Page(answers, tmp_path).build().queue()
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, **launch_arguments(answers))
    try:
        visitors = [
            client.Client(url, verbose=False, analytics_enabled=False, download_files=str(tmp_path)) for _ in range(2)
        ]
        controls = [(0, -1, 1, seed, 2) for seed in (0, 7)]
        jobs = [visitor.submit(*c, api_name="/samples") for visitor, c in zip(visitors, controls, strict=True)]
        a = answers.instance(0)
        for job, (_, _, _, seed, _) in zip(jobs, controls, strict=True):
            gallery, archive, *_ = job.result(timeout=60)
            expected = answers.samples(a, a, Settings(seed=seed, count=2)).images[:, 0].numpy()
            assert np.array_equal(np.stack([pixels(Path(item["image"])) for item in gallery]), expected)
            with zipfile.ZipFile(archive["value"] if isinstance(archive, dict) else archive) as file:
                assert file.namelist() == [f"exemplar00000-seed{seed + i:04d}.png" for i in range(2)]
        with pytest.raises(Exception, match="maximum value 1"):
            visitors[0].predict(0, -1, 3, 0, 2, api_name="/samples")
        large = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", bytes(11 << 20))}, trust_env=False)
        assert large.status_code == 413
    finally:
        page.close()
