"""Imports run downward only, as docs/architecture.md draws it. A new file of training/ gets its floor below."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}

# Both from the ground up; what stands on one floor of training may import each other.
HOUSE = ("torch_utils", "metrics", "training", "stylegan2_icgan", "scripts", "benchmarks", "tests")
TRAINING = (
    ("randomness",),
    ("decoding", "workers", "cache", "class_prior", "bad_images"),
    ("dataset", "condition", "config", "archive", "image_source", "labelling", "formats", "partial_zip", "conversion"),
    ("networks", "augment", "loading", "step", "guard", "mixed_precision", "ema", "image_grid", "pairs", "fake_pool"),
    (
        *("loss", "sampling", "preview", "translation", "translation_loss"),
        *("wasserstein", "latent", "pixel_loss", "cutmix", "classifier_loss"),
    ),
    ("system",),
    (
        *("checkpoint", "run_folder", "advice", "writers", "progress", "stopping"),
        *("estimate", "rounds", "agreement", "keeping", "ticks"),
    ),
    ("transfer", "graphs"),
    ("saving",),
    ("training_loop",),
)
SYSTEMS = "stylegan2_icgan.systems."


def house_floor(module: str) -> int | None:
    """0 for what is in torch_utils; None for what isn't ours."""
    top = module.split(".")[0]
    top = "scripts" if top in SCRIPTS else top
    return HOUSE.index(top) if top in HOUSE else None


def training_floor(module: str) -> int:
    """0 for randomness, and for training/__init__.py, which may import nothing of training."""
    _, unit, *_ = f"{module}.randomness".split(".")
    floors = [floor for floor, units in enumerate(TRAINING) if unit in units]
    if not floors:
        raise ValueError(f"training/{unit} has no floor: give it a place in TRAINING of tests/test_floors.py")
    return floors[0]


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, also inside functions and relative to the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            origin = parts[: len(parts) - node.level + is_package] if node.level else []
            origin += [node.module] if node.module else []
            yield from ((node.lineno, ".".join([*origin, alias.name])) for alias in node.names)


def faults(path: str, source: str) -> list[str]:
    """What the file at `path`, relative to the checkout, does against the rules: one line each."""
    tree, parts = ast.parse(source, path), Path(path).with_suffix("").parts
    module, found = ".".join(part for part in parts if part != "__init__"), []
    floor = HOUSE.index("scripts") if len(parts) == 1 else HOUSE.index(parts[0])
    if parts[0] == "training":
        training_floor(module)
    for line, name in imports(tree, module, is_package=parts[-1] == "__init__"):
        target = house_floor(name)
        if name.split(".")[0] == "importlib" or name == "sys.path":
            found.append(f"{path}:{line}: {name}")
        if target is not None and (target > floor or (HOUSE[target] == "scripts" and HOUSE[floor] != "tests")):
            found.append(f"{path}:{line}: {HOUSE[floor]} may not import {name}")
        if parts[0] == "training" and name.startswith("training.") and training_floor(name) > training_floor(module):
            found.append(f"{path}:{line}: {module} is below {name}")
        if module.startswith(SYSTEMS) and f"{name}.".startswith(SYSTEMS) and not f"{name}.".startswith(f"{module}."):
            found.append(f"{path}:{line}: a system may import neither another nor their table: {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{path}:{node.lineno}: bare except")
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in ("sys.path", "__import__"):
            found.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    return found


def sources() -> list[str]:
    folders = [ROOT / name for name in HOUSE if name != "scripts"]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def test_files_of_every_floor_are_read():
    assert {"torch_utils", "metrics", "training", "stylegan2_icgan", "tests"} <= {Path(p).parts[0] for p in sources()}


@pytest.mark.parametrize("path", sources())
def test_file_keeps_to_its_floor(path):
    assert faults(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("torch_utils/misc.py", "import metrics.frechet"),
        ("torch_utils/misc.py", "from tests.test_ops import check"),
        ("stylegan2_icgan/models.py", "import benchmarks.quality"),
        ("torch_utils/ops/bias_act.py", "def f():\n    from training import condition"),
        ("metrics/frechet.py", "from training.dataset import ImageFolderDataset"),
        ("training/loss.py", "import stylegan2_icgan.features as f"),
        ("training/config.py", "from training.networks import stylegan2"),
        ("training/networks/stylegan2.py", "from training.loss import r1"),
        ("training/networks/stylegan2.py", "from ..loss import r1"),
        ("training/networks/__init__.py", "from .. import loss"),
        ("training/sampling.py", "from training import system"),
        ("training/condition.py", "if True:\n    import training.training_loop"),
        ("training/randomness.py", "from .condition import Condition"),
        ("training/__init__.py", "from training.training_loop import training_loop"),
        ("stylegan2_icgan/systems/dcgan.py", "from stylegan2_icgan.systems.biggan import Options"),
        ("stylegan2_icgan/systems/dcgan.py", "from . import biggan"),
        ("stylegan2_icgan/systems/dcgan.py", "from stylegan2_icgan.systems import SYSTEMS"),
        ("stylegan2_icgan/systems/dcgan.py", "from stylegan2_icgan import systems"),
        ("stylegan2_icgan/features.py", "import test_floors_script"),
        ("test_floors_script.py", "import test_floors_other"),
        ("benchmarks/quality.py", "from test_floors_script import main"),
        ("metrics/frechet.py", "import importlib.util"),
        ("tests/test_loss.py", "from importlib import import_module"),
        ("tests/test_loss.py", "import sys\nsys.path.insert(0, '..')"),
        ("tests/test_loss.py", "from sys import path"),
        ("tests/test_loss.py", "torch = __import__('torch')"),
        ("benchmarks/quality.py", "try:\n    pass\nexcept:\n    pass"),
    ],
)
def test_checker_finds(path, source, monkeypatch):
    monkeypatch.setattr("test_floors.SCRIPTS", {"test_floors_script", "test_floors_other"})
    assert len(faults(path, source)) == 1, faults(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("metrics/frechet.py", "from torch_utils import misc"),
        ("training/loss.py", "from training.condition import Condition\nfrom training import networks"),
        ("training/networks/stylegan2.py", "from training.networks.layers import conv\nfrom .layers import bias"),
        ("training/dataset.py", "from training.condition import Sample\nfrom training.randomness import integers"),
        ("stylegan2_icgan/systems/__init__.py", "from stylegan2_icgan.systems import biggan, dcgan"),
        ("stylegan2_icgan/systems/dcgan.py", "from stylegan2_icgan.networks import D\nfrom training import loss"),
        ("test_floors_script.py", "from stylegan2_icgan import systems\nimport torch"),
        ("tests/test_train.py", "import test_floors_script"),
        ("benchmarks/quality.py", "from training.training_loop import training_loop"),
    ],
)
def test_checker_allows(path, source, monkeypatch):
    monkeypatch.setattr("test_floors.SCRIPTS", {"test_floors_script"})
    assert faults(path, source) == []


def test_file_without_a_floor_is_told_where_to_get_one():
    with pytest.raises(ValueError, match=r"training/novelty has no floor: .* TRAINING of tests/test_floors.py"):
        faults("training/novelty.py", "")
    with pytest.raises(ValueError, match="training/novelty"):
        faults("training/loss.py", "from training import novelty")
