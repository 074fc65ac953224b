"""The Python interface: the documented example as it stands, shapes and ranges, and one-line errors."""

import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY_RUN, invoke, pattern_images, write_zip

import export
import stylegan2_icgan as icgan
import train
from torch_utils.command_line import UserError

ROOT = Path(__file__).resolve().parent.parent
CONDS = ["none", "class", "instance", "instance+class"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A snapshot of each kind, after one step."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_zip(folder / "patterns.zip", *pattern_images(24))
    snapshots = {}
    for cond in CONDS:
        flags = [*TINY_RUN, f"--data={data}", f"--cond={cond}", f"--outdir={folder / cond}"]
        flags += ["--k=4"] if "instance" in cond else []
        assert invoke(train.main, *flags, "--minutes=0.0001").exit_code == 0
        (snapshots[cond],) = folder.glob(f"{cond}/*/network-snapshot-000000.pt")
    return snapshots


@pytest.fixture
def models(trained: dict[str, Path]) -> Callable[[str], Any]:
    """A model whose images differ clearly from each other."""

    def model(cond: str) -> Any:
        G = icgan.load(trained[cond], device="cpu")
        torch.manual_seed(0)
        for parameter in G.network.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        h, c = (G.exemplars.condition.h[:4], G.exemplars.condition.c[:4]) if len(G.exemplars) else (None, None)
        images = G.network(torch.randn(4, G.z_dim), c, h)
        for name, parameter in G.network.named_parameters():
            if "torgb.weight" in name or "torgb.bias" in name:
                parameter /= images.abs().max()  # images are linear in these
        return G

    return model


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)  # no flags of scripts
    return str(caught.value)


def test_the_documented_example_runs_as_it_stands(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("network-snapshot.pt").write_bytes(trained["instance"].read_bytes())
    for name, image in zip("ab", pattern_images(24)[0], strict=False):
        PIL.Image.fromarray(image).save(f"{name}.png")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) >= 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert (names["images"].shape, names["images"].dtype) == ((4, 1, 8, 8), torch.uint8)
    assert names["way"].shape == names["variations"].shape == (8, 1, 8, 8)
    assert len(list(tmp_path.glob("variation*.png"))) == 8
    assert "this model takes features [N, " in capsys.readouterr().out


def test_importing_the_package_alone_is_fast_and_features_can_always_be_called() -> None:
    """In a process of its own, since this one has imported everything."""
    code = (
        "import sys, stylegan2_icgan as icgan\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "import stylegan2_icgan.features as f\n"
        "from stylegan2_icgan import features\n"
        "assert f is icgan.features is features and callable(features) and 'pca' in features.EXTRACTORS\n"
        "try: icgan.features(['x.png'], 'pca')\n"
        "except ValueError as error: assert 'pca belongs to a model' in str(error), error\n"
        "else: raise SystemExit('not refused')\n"
        "assert not hasattr(icgan, 'other')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("cond", CONDS)
def test_samples_are_bytes_and_depend_on_their_own_row_alone(models: Callable[[str], Any], cond: str) -> None:
    G = models(cond)
    h = G.exemplars.condition.h[:3] if G.h_dim else None
    c = [2, 0, 1] if G.c_dim else None
    images = G.sample(h=h, c=c, seeds=[5, 6, 7])
    assert (images.shape, images.dtype, images.device.type) == ((3, 1, 8, 8), torch.uint8, "cpu")
    alone = [
        G.sample(h=None if h is None else h[i], c=None if c is None else c[i], seeds=[5 + i])[0].int() for i in range(3)
    ]
    assert (torch.stack(alone) - images.int()).abs().max() <= 1  # the last bit of a sum may depend on the batch
    assert len({image.numpy().tobytes() for image in images}) == 3
    assert not torch.equal(images, G.sample(h=h, c=c, seeds=[5, 6, 7], truncation_psi=0.3))


def test_one_row_goes_with_all_of_the_others(models: Callable[[str], Any]) -> None:
    G = models("instance+class")
    h = G.exemplars.condition.h
    assert len(G.sample(h=h[0], c=1, seeds=range(5))) == 5
    assert len(G.sample(h=h[:4], c=1, seeds=[9])) == 4
    assert len(G.sample(h=h[:4], c=[0, 1, 2, 3])) == 4
    same = [G.sample(h=h[:2], c=c, seeds=[1]) for c in (3, [3, 3], np.eye(4)[[3, 3]], torch.eye(4)[3:4])]
    same += [G.sample(h=(7 * h[:2]).tolist(), c=3, seeds=[1]), G.sample(h=h[:2].numpy(), c=3, seeds=[1], batch=1)]
    assert all((images.int() - same[0].int()).abs().max() <= 1 for images in same)


def test_wrong_conditions_are_one_line(models: Callable[[str], Any]) -> None:
    G, unconditional = models("instance+class"), models("none")
    h = G.exemplars.condition.h
    assert "h is missing; this model takes instance features [N, " in refusal(lambda: G.sample(c=1))
    assert "c is missing; this model takes classes 0 to 3" in refusal(lambda: G.sample(h=h[:1]))
    assert "h is given; this model takes no instance features" in refusal(lambda: unconditional.sample(h=h[:1]))
    assert "c is given; this model takes no classes" in refusal(lambda: unconditional.sample(c=0))
    assert "h is [1, 2]; this model takes features [N, " in refusal(lambda: G.sample(h=[[1.0, 2.0]], c=1))
    assert "classes 0 to 3" in refusal(lambda: G.sample(h=h[:1], c=4))
    assert "classes 0 to 3" in refusal(lambda: G.sample(h=h[:1], c=-1))
    assert "labels [N, 4]" in refusal(lambda: G.sample(h=h[:1], c=np.eye(5)))
    assert "without direction" in refusal(lambda: G.sample(h=h[:1] * 0, c=1))
    assert "without direction" in refusal(lambda: G.sample(h=h[:1] * float("nan"), c=1))
    assert "rows given; expected the same number" in refusal(lambda: G.sample(h=h[:2], c=[1, 2, 3]))
    assert "rows given; expected the same number" in refusal(lambda: unconditional.sample(seeds=[]))


def test_features_of_paths_and_pixels_are_those_of_training(models: Callable[[str], Any], tmp_path: Path) -> None:
    G, images = models("instance"), pattern_images(24)[0]
    expected = G.exemplars.condition.h[:3]
    for i in range(3):
        PIL.Image.fromarray(images[i]).save(tmp_path / f"{i}.png")
    pixels = np.stack(images[:3])[:, None]
    for given in ([tmp_path / f"{i}.png" for i in range(3)], pixels, torch.from_numpy(pixels)):
        found = icgan.features(given, G)
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, atol=1e-5)
    assert icgan.features(pixels[:0], G).shape == icgan.features([], G).shape == (0, G.h_dim)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    assert "broken.png" in refusal(lambda: icgan.features([tmp_path / "broken.png"], G))
    assert "expected uint8 [N, 1 or 3, H, W]" in refusal(lambda: icgan.features(pixels / 255, G))
    assert "name an extractor" in refusal(lambda: icgan.features(pixels, models("none")))
    assert "Did you mean 'dinov2'" in refusal(lambda: icgan.features(pixels, "dinov"))
    assert "weights=no.pth does not exist" in refusal(lambda: icgan.features(pixels, "swav", weights="no.pth"))


def test_features_by_a_network_and_its_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    PIL.Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(tmp_path / "a.png")
    found = icgan.features([tmp_path / "a.png"], "timm:test_vit.r160_in1k", weights=tmp_path / "vit.pth", device="cpu")
    assert found.shape == (1, 64)
    assert found.norm(dim=1).sub(1).abs().max() < 1e-5


# Loading


def test_what_can_not_be_loaded_is_one_line_at_once(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = torch.load(trained["none"], weights_only=True) | {"format": 99}
    torch.save(newer, tmp_path / "newer.pt")
    (tmp_path / "cut.pt").write_bytes(trained["none"].read_bytes()[:-100])
    assert "has format 99; this version reads up to 1" in refusal(lambda: icgan.load(tmp_path / "newer.pt"))
    assert "can't be read" in refusal(lambda: icgan.load(tmp_path / "cut.pt"))
    assert "does not exist" in refusal(lambda: icgan.load("models/none.pt"))
    assert "does not exist" in refusal(lambda: icgan.load("no such thing"))
    assert "is no exported generator" in refusal(lambda: icgan.load(tmp_path))
    if not torch.cuda.is_available():
        assert "device=cuda" in refusal(lambda: icgan.load(trained["none"], device="cuda"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refusal(lambda: icgan.load("user/model"))


class Handler(BaseHTTPRequestHandler):
    """Serves the files of one repository the way the hub does."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        path = self.folder / self.path.rpartition("/")[2]
        there = self.path.startswith("/user/model/resolve/main/") and path.is_file()
        content = path.read_bytes() if there else b""
        self.send_response(200 if there else 404)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        if not there:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Handler]]:
    """The Hugging Face hub with one model, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "my-model"
    assert invoke(export.main, f"--network={trained['instance']}", f"--out={folder}").exit_code == 0
    handler = type("OwnHandler", (Handler,), {"folder": folder, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield handler
        server.shutdown()


def test_a_hub_id_is_fetched_once_and_then_needs_no_hub(
    hub: type[Handler], trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours = icgan.load(trained["instance"], device="cpu")
    h = ours.exemplars.condition.h[:2]
    fetched = icgan.load("user/model", device="cpu")
    assert torch.equal(fetched.sample(h=h), ours.sample(h=h))
    assert "user/other is neither a file" in refusal(lambda: icgan.load("user/other"))
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(icgan.load("user/model", device="cpu").exemplars.condition.h, ours.exemplars.condition.h)
    assert hub.asked == []
    assert "(HF_HUB_OFFLINE is set)" in refusal(lambda: icgan.load("user/other"))


def test_off_line_the_answer_comes_at_once(hub: type[Handler], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    assert "Connection refused" in refusal(lambda: icgan.load("user/model"))
    assert time.monotonic() - start < 3


# The manual


def test_the_home_page_and_the_menu_lead_to_every_page() -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")} - {"index.md"}
    linked = re.findall(r"\]\(([\w/-]+\.md)\)", (ROOT / "docs/index.md").read_text(encoding="utf-8"))
    menu = re.findall(r"^ +- .+: ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(linked) == sorted(pages)
    assert sorted(menu) == sorted(pages | {"index.md"})


@pytest.mark.slow
def test_the_manual_is_built_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("load", "features", "Generator.sample"):
        assert f'id="stylegan2_icgan.api.{name}"' in page
