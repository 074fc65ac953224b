import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_RUN, pattern_images, write_zip

from stylegan2_icgan.instances import InstanceDataset
from stylegan2_icgan.making import StoreOptions, ensure_store
from torch_utils.command_line import UserError
from training.dataset import ImageFolderDataset, LabelledSource
from training.loading import fake_draws, make_loader, real_draws
from training.randomness import hashed, integers, permutation, seed_everything, uniform


def test_real_draws_show_every_image_once_an_epoch() -> None:
    index = real_draws(10, seed=0, start=0, count=30).index.reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in index.tolist())
    assert len({tuple(epoch) for epoch in index.tolist()}) == 3
    assert not np.array_equal(index, real_draws(10, seed=1, start=0, count=30).index.reshape(3, 10))


def test_draws_are_a_function_of_seed_and_position() -> None:
    for make in (
        lambda start, count: real_draws(7, 5, start, count),
        lambda start, count: fake_draws(7, 5, 1, start, count),
    ):
        whole, tail = make(0, 40), make(23, 17)
        assert np.array_equal(whole.index[23:], tail.index)
        assert np.array_equal(whole.seed[23:], tail.seed)


def test_seeding_is_that_of_torch() -> None:
    seed_everything(3, 5)
    ours = torch.randn(4)
    torch.manual_seed(int(hashed(3, 5)[0] >> np.uint64(1)))
    assert torch.equal(ours, torch.randn(4))


def test_fake_draws_are_uniform_and_differ_between_phases() -> None:
    counts = np.bincount(fake_draws(10, 0, 0, 0, 20_000).index, minlength=10)
    assert abs(counts - 2000).max() < 5 * (2000 * 0.9) ** 0.5
    assert not np.array_equal(fake_draws(10, 0, 0, 0, 50).index, fake_draws(10, 0, 1, 0, 50).index)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("sampling", ["instance", "class"])
def test_loader_yields_the_same_whatever_the_workers(patterns_zip: Path, workers: int, sampling: str) -> None:
    dataset = ImageFolderDataset(patterns_zip, use_labels=True)
    store = ensure_store(dataset, StoreOptions(k=5))
    for source in (
        LabelledSource(dataset, sampling),
        InstanceDataset(dataset, store, 5, mirror_instances=True, sampling=sampling),
    ):
        alone, helped = (make_loader(source, seed=3, start=16, batch=8, workers=count) for count in (0, workers))
        for _ in range(7):
            for one, other in zip(next(alone), next(helped), strict=True):
                assert torch.equal(one, other)


def test_workers_read_right_after_the_parent_has_read(tmp_path: Path) -> None:
    """An open file inherited over a fork is the classic fault: two workers move each other's place in it."""
    images, _ = pattern_images(96, side=32)
    dataset = ImageFolderDataset(write_zip(tmp_path / "data.zip", images))
    expected = [zlib.crc32(image.tobytes()) for image in images]
    dataset.images(range(96))  # the file is open and has been read before the fork
    loader = make_loader(LabelledSource(dataset), seed=0, start=0, batch=8, workers=2)
    seen = []
    for step in range(3 * 96 // 8):
        sample = next(loader)
        assert [zlib.crc32(image.numpy().tobytes()) for image in sample.image] == [
            expected[i] for i in sample.index.tolist()
        ]
        dataset.image(step)  # ... and goes on reading
        seen += sample.index.tolist()
    assert sorted(seen) == sorted([*range(96)] * 3)


def test_damaged_image_is_one_line_from_a_worker_too(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bad.zip", pattern_images(8)[0])
    content = bytearray(path.read_bytes())
    content[content.find(b"IDAT", content.find(b"img00000005.png")) + 6] ^= 0xFF
    path.write_bytes(content)
    lines = []
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"img00000005\.png can't be read") as caught:
            next(make_loader(LabelledSource(ImageFolderDataset(path)), 0, 0, 8, workers))
        lines.append(str(caught.value))
    assert lines[0] == lines[1]


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["in the trainer", "in a worker", "a worker is killed"])
def test_processes_end_with_the_run_whatever_ends_it(patterns_zip: Path, failing: str) -> None:
    """Workers ignore SIGTERM, and a kept exception keeps the loader: that must not keep Python from ending."""
    code = (
        "import multiprocessing, sys, numpy as np\n"
        "from training.dataset import ImageFolderDataset, LabelledSource\n"
        "from training.loading import make_loader\n"
        "source = LabelledSource(ImageFolderDataset(sys.argv[1]))\n"
        "if sys.argv[2] == 'in a worker':\n    source.dataset.labels = lambda j: 1 / 0\n"
        "def run():\n"
        "    loader = make_loader(source, 0, 0, 8, workers=2)\n"
        "    if sys.argv[2] == 'a worker is killed':\n        multiprocessing.active_children()[0].kill()\n"
        "    for _ in range(100):\n        next(loader)\n"
        "    raise OSError('the disk is full')\n"
        "try:\n    run()\n"
        "except Exception as error:\n    kept = error\n    print(kept)\n"
    )
    command = [sys.executable, "-c", code, str(patterns_zip), failing]
    cwd = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=True)
    expected = {
        "in the trainer": "the disk is full",
        "in a worker": "ZeroDivisionError",
        "a worker is killed": "is killed by signal",
    }
    assert expected[failing] in done.stdout


def test_loader_leaves_the_global_generator_alone(patterns_zip: Path) -> None:
    source = LabelledSource(ImageFolderDataset(patterns_zip))
    for workers in (0, 1):
        before = torch.random.get_rng_state()
        next(make_loader(source, 0, 0, 8, workers))
        assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_training_never_imports_faiss(patterns_zip: Path, tmp_path: Path) -> None:
    """Its OpenMP and torch's hang forked workers. The store is made in this run, too."""
    code = (
        "import sys, train\n"
        "try:\n    train.main(sys.argv[1:])\n"
        "except SystemExit as end:\n    print('ended with', end.code)\n"
        "print('faiss imported:', any(name.split('.')[0] == 'faiss' for name in sys.modules))\n"
    )
    flags = [*TINY_RUN, f"--data={patterns_zip}", "--cond=instance", "--k=4", "--kimg=0.016", f"--outdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert "ended with 0" in done.stdout, done.stderr
    assert "faiss imported: False" in done.stdout


def test_loader_continues_where_a_run_stopped(patterns_zip: Path) -> None:
    source = LabelledSource(ImageFolderDataset(patterns_zip))
    whole = make_loader(source, seed=0, start=0, batch=8)
    for _ in range(5):
        next(whole)
    assert torch.equal(next(whole).index, next(make_loader(source, seed=0, start=40, batch=8)).index)


def test_random_functions_are_spread_and_repeatable() -> None:
    values = uniform(7, np.arange(100_000))
    assert 0 <= values.min() < values.max() < 1
    assert abs(values.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    assert set(integers(3, 1, np.arange(100)).tolist()) == {0, 1, 2}
    assert sorted(permutation(20, 1, 2).tolist()) == list(range(20))
    assert int(hashed(1, 2)[0]) != int(hashed(2, 1)[0])
    seed_everything(3, 4)
    first = torch.randn(5)
    seed_everything(3, 4)
    assert torch.equal(first, torch.randn(5))
    seed_everything(3, 5)
    assert not torch.equal(first, torch.randn(5))
