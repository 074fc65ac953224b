"""What benchmarks/gpu_suite.py asks of a device: one function a question, each run in a process of its own.

A part is given the device and whether to be quick (toy sizes), and returns what belongs into the JSON. What must hold
is asserted: a part that raises is a failure of the suite.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from benchmarks import ops
from benchmarks.loader_rows import loader_rows, write_photos
from benchmarks.made_features import clustered
from benchmarks.metrics import features as made_features
from benchmarks.networks import NETWORKS, Conditions, conditions, make_system
from benchmarks.peer.clocks import least, wall_seconds
from benchmarks.step import measure
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from stylegan2_icgan.neighbours import make_search
from stylegan2_icgan.using.encoding import encode, in_threads
from torch_utils import custom_ops
from torch_utils.ops.bias_act import activations, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from torch_utils.precision import is_fast
from torch_utils.training_stats import Collector
from training.dataset import ImageFolderDataset, LabelledSource
from training.graphs import record
from training.loading import make_loader
from training.networks.layers import modulated_conv2d
from training.sampling import sample_images
from training.step import Step

Result = dict[str, Any]
Work = Callable[[torch.device, bool], Result]


class Part(NamedTuple):
    """One row of the table at the end."""

    work: Work
    limit_sec: float
    needs_native: bool = False


TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def build(device: torch.device, quick: bool) -> Result:
    """Compile and load the native ops; later parts find them."""
    began = time.perf_counter()
    assert custom_ops.prepare(device) == "native"
    return {"sec": time.perf_counter() - began}


def correctness(device: torch.device, quick: bool) -> Result:
    """Native results, first and second derivatives against the reference's on the CPU in float64."""
    f = setup_filter([1, 3, 3, 1])
    operations: dict[str, Callable[[Tensor, Tensor, Tensor, str], Tensor]] = {
        f"bias_act {act}": lambda x, b, f, impl, act=act: bias_act(x, b, act=act, clamp=2.0, impl=impl)
        for act in activations
    }
    operations |= {
        "up 2": lambda x, b, f, impl: upsample2d(x, f, impl=impl),
        "down 2": lambda x, b, f, impl: downsample2d(x, f, impl=impl),
        "filter": lambda x, b, f, impl: filter2d(x, f, impl=impl),
        "upfirdn2d 3/2": lambda x, b, f, impl: upfirdn2d(x, f[0], [3, 2], [2, 3], [3, -1, 2, 5], impl=impl),
    }
    errors: dict[str, float] = {}
    for dtype, tolerance in TOLERANCES.items():
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.manual_seed(0)
            x, b = torch.randn(3, 16, 20, 24).to(dtype), torch.randn(16).to(dtype)
            for name, operation in operations.items():
                results = []
                for where, work, impl in ((torch.device("cpu"), torch.float64, "ref"), (device, dtype, "native")):
                    own = x.to(where, work).to(memory_format=layout).requires_grad_()
                    y = operation(own, b.to(where, work), f.to(where), impl)
                    (slope,) = torch.autograd.grad(y, own, torch.full_like(y, 0.5), create_graph=True)
                    results.append([tensor.detach().cpu().double() for tensor in (y, slope)])
                for exact, found in zip(*results, strict=True):
                    # A value at a kink or the clamp may be rounded to its other side: the worst two in 1000 are spared.
                    error = ((found - exact).abs() / exact.abs().max()).flatten().quantile(0.998).item()
                    key = f"{name} {str(dtype).removeprefix('torch.')}"
                    errors[key] = max(errors.get(key, 0.0), error)
                    assert error <= tolerance, (key, layout, error)
    x = torch.randn(2, 4, 6, 5, device=device, dtype=torch.float64, requires_grad=True)
    b, taps = torch.randn(4, device=device, dtype=torch.float64, requires_grad=True), f.to(device)
    for act in ("lrelu", "swish"):
        assert gradgradcheck(lambda x, b, act=act: bias_act(x, b, act=act, impl="native"), (x, b), fast_mode=True)
    assert gradcheck(lambda x: upsample2d(x, taps, impl="native").square(), x, fast_mode=True)
    assert gradgradcheck(lambda x: downsample2d(x, taps, impl="native").square(), x, fast_mode=True)
    return {"worst": dict(sorted(errors.items(), key=lambda item: -item[1])[:8]), "checked": len(errors)}


def convolutions(device: torch.device, quick: bool) -> Result:
    """conv2d_resample with native ops against the reference in float64: on the CPU, minimal filtering too."""
    torch.manual_seed(0)
    x, w, f = torch.randn(4, 32, 16, 16), torch.randn(32, 32, 3, 3), setup_filter([1, 3, 3, 1])
    errors = {}
    for name, resample in (("same", {}), ("up 2", {"up": 2}), ("down 2", {"down": 2})):
        results = []
        for where, dtype, mode in ((torch.device("cpu"), torch.float64, "ref"), (device, torch.float32, "native")):
            custom_ops.set_mode(mode)
            own = [x.to(where, dtype).requires_grad_(), w.to(where, dtype).requires_grad_()]
            y = conv2d_resample(*own, f=f.to(where), padding=1, **resample)
            first = torch.autograd.grad(y.square().sum(), own, create_graph=True)
            second = torch.autograd.grad(first[0].square().sum(), own)
            results.append([tensor.detach().cpu().double() for tensor in (y, *first, *second)])
        pairs = zip(*results, strict=True)
        errors[name] = max(((found - exact).abs().max() / exact.abs().max()).item() for exact, found in pairs)
        assert errors[name] < 1e-4, errors
    return errors


def floor(device: torch.device, quick: bool) -> Result:
    """benchmarks/ops.py"""
    return ops.run_all(device, quick, [2, 16, 16, 16] if quick else None)


def large(device: torch.device, quick: bool) -> Result:
    """More than 2^31 elements, float16: indices of 32 bits would not do."""
    side = 64 if quick else 1 << 15
    x = torch.ones(1, 2, side, side + 64, device=device, dtype=torch.float16)
    b = torch.tensor([0.0, 1.0], device=device, dtype=torch.float16)
    y = bias_act(x, b, act="relu", gain=1, impl="native")
    assert y[0, 0, -1, -1] == 1
    assert y[0, 1].min() == 2
    small = downsample2d(y, setup_filter([1, 3, 3, 1], device=device), impl="native")
    assert small[0, 1, -2, -2] == 2
    return {"elements": x.numel()}


def step(network: str, precision: str, graphs: bool = False, aug: str = "none", mode: str | None = None) -> Work:
    """benchmarks/step.py; `mode`: other ops than the suite's."""

    def part(device: torch.device, quick: bool) -> Result:
        name = {"paper256": "toy", "biggan64": "biggan-tiny"}[network] if quick else network
        used = "fp32" if precision == "fp16" and device.type != "cuda" else precision  # there is no float16 elsewhere
        custom_ops.set_mode(mode or custom_ops.get_mode())
        batch = 4 if quick else NETWORKS[name].batch
        system = make_system(name, used, "instance", batch, device)
        if graphs:
            record(system)
        row = measure(Conditions(system, name, batch, aug, device), 1 if quick else 5)
        return row | {"network": name, "batch": batch, "precision": used, "is_fast": is_fast_in(used, device)}

    return part


def is_fast_in(precision: str, device: torch.device) -> bool:
    return is_fast({"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32), device)


def graphs_equal(device: torch.device, quick: bool) -> Result:
    """Gradients and statistics of recorded phases against those of eager ones, from the same seeds, under ADA."""
    name, batch = ("toy", 4) if quick else ("small", 16)
    found: list[dict[str, Tensor]] = []
    for recorded in (False, True):
        system = make_system(name, "fp32", "instance", batch, device)
        for optimizer in system.optimizers.values():  # the weights stay, so that differences don't grow
            optimizer.param_groups[0]["lr"] = 0.0
        if recorded:
            record(system)
        torch.manual_seed(0)
        shown, collector = Conditions(system, name, batch, "ada", device), Collector()
        rows: dict[str, Tensor] = {}
        for seed in range(3):
            for phase in system.phases:
                torch.manual_seed(seed)
                system.run(phase, [replace(shown.step(), key=(seed,))])
                parameters = system.networks[phase.trains].named_parameters()
                rows |= {f"{phase.name} {seed} {k}": p.grad.clone() for k, p in parameters if p.grad is not None}
        means = {key: torch.tensor(row["mean"]) for key, row in collector.collect().items()}
        found.append(rows | means)
    eager, recorded_rows = found
    assert eager.keys() == recorded_rows.keys()
    errors = {k: ((recorded_rows[k] - v).abs().max() / v.abs().max().clamp(min=1e-6)).item() for k, v in eager.items()}
    worst = dict(sorted(errors.items(), key=lambda item: -item[1])[:4])
    assert max(errors.values()) < 1e-3, worst
    return {"checked": len(errors), "worst": worst}


def modulation(device: torch.device, quick: bool) -> Result:
    """Modulated 3x3 convolutions with weights spelt out for each image (fused) and with images scaled: seconds."""
    shapes = [(8, 8)] if quick else [(512, 32), (256, 64), (128, 128), (64, 256)]  # channels, side: those of paper256
    dtypes = (torch.float32, torch.float16) if device.type == "cuda" else (torch.float32,)
    num, rows = (2 if quick else 32), {}
    for channels, side in shapes:
        for dtype in dtypes:
            x = torch.randn(num, channels, side, side, device=device, dtype=dtype, requires_grad=True)
            w = torch.randn(channels, channels, 3, 3, device=device, requires_grad=True)
            s = torch.rand(num, channels, device=device, requires_grad=True)

            def passes(fused: bool, x: Tensor = x, w: Tensor = w, s: Tensor = s) -> list[Callable[[], object]]:
                def forward() -> Tensor:
                    return modulated_conv2d(x, w, s, padding=1, fused=fused)

                return [torch.no_grad()(forward), lambda: torch.autograd.grad(forward().sum(), (x, w, s))]

            times = least(passes(True) + passes(False), device, 1 if quick else 5)
            names = ("fused_forward", "fused_both", "scaled_forward", "scaled_both")
            rows[f"{channels} channels, {side} px, {dtype}"] = dict(zip(names, times, strict=True))
    return rows


def compiled(device: torch.device, quick: bool) -> Result:
    """torch.compile, which takes the reference ops, on generation and on a pass of D; it has no second derivatives."""
    name, batch = ("toy", 4) if quick else ("paper256", 32)
    networks = make_system(name, "fp32" if quick else "fp16", "instance", batch, device).networks
    G, D = networks["G"].eval(), networks["D"]
    ws = torch.randn(batch, G.num_ws, G.w_dim, device=device)
    images, condition = (
        torch.randn(batch, 3, *[NETWORKS[name].resolution] * 2, device=device),
        conditions(G, batch, device),
    )

    def passes(synthesis: Callable[..., Tensor], critic: Callable[..., Tensor]) -> list[Callable[[], object]]:
        return [
            torch.no_grad()(lambda: synthesis(ws, noise_mode="const")),
            lambda: critic(images, condition.c, condition.h).sum().backward(),
        ]

    works = passes(G.synthesis, D) + passes(torch.compile(G.synthesis), torch.compile(D))
    times = least(works, device, 1 if quick else 5)
    return dict(zip(("generate", "D", "generate_compiled", "D_compiled"), times, strict=True))


def generate(device: torch.device, quick: bool) -> Result:
    """Images a second, alone, and as PNG in the memory (wall clock: four threads encode while the GPU goes on)."""
    rows: Result = {}
    for name, precision in (
        (("toy", "fp32"),) if quick else (("paper256", "fp32"), ("paper256", "fp16"), ("wide256", "fp16"))
    ):
        G = make_system(name, precision, "instance", 32, device).networks["G"].eval()
        num = 8 if quick else 256

        def images(G: torch.nn.Module = G, num: int = num) -> Tensor:
            return sample_images(G, torch.randn(num, G.z_dim), conditions(G, num, torch.device("cpu")), batch=32)

        images()
        alone = wall_seconds(images, device)
        encoded = wall_seconds(lambda images=images: list(in_threads(lambda i: encode(i, "png"), images())), device)
        rows[f"{name} {precision}"] = {"images_per_sec": num / alone, "png_per_sec": num / encoded}
    return rows


def loader(device: torch.device, quick: bool) -> Result:
    """Images a second of one core, and of 8 workers at 256 px (wall clock)."""
    with tempfile.TemporaryDirectory() as folder:
        rows = loader_rows(Path(folder), 64 if quick else 2000, 1)
        num = 8 if quick else 400
        source = LabelledSource(ImageFolderDataset(write_photos(Path(folder) / "photos.zip", num, 256)))
        workers, batch = (0, 4) if quick else (8, 64)
        batches = make_loader(source, 0, 0, batch, workers, pin_memory=device.type == "cuda")
        next(batches)
        count = 2 if quick else 40
        sec = wall_seconds(lambda: [next(batches).image.to(device) for _ in range(count)], device)
    return rows | {"workers": workers, "images_per_sec_256px": count * batch / sec}


def neighbours(device: torch.device, quick: bool) -> Result:
    """Exact k-NN, milliseconds of wall time a query."""
    num, queries = (500, 50) if quick else (100_000, 8192)
    rows = clustered(num, 64 if quick else 2048)
    search = make_search(rows, 10 if quick else 50, "exact", device)
    ids, _ = search.search(search.query_order()[:queries])
    sec = wall_seconds(lambda: search.search(search.query_order()[:queries]), device)
    assert ids.shape[0] == queries
    return {"num": num, "queries": queries, "ms_per_query": sec / queries * 1e3, "search": search.description}


def statistics(device: torch.device, quick: bool) -> Result:
    """Mean, covariance and Frechet distance of features that come from the device, seconds of wall time."""
    num, width = (500, 32) if quick else (20_000, 2048)
    x, y = (made_features(num, width, seed).to(device) for seed in (0, 1))
    a = FeatureStats()
    gathered = wall_seconds(lambda: [a.append(rows) for rows in x.split(64)], device)
    b = FeatureStats().append(y)
    distance = []
    sec = wall_seconds(lambda: distance.append(frechet_distance(a, b)), device)
    assert distance[0] > 0
    return {"num": num, "width": width, "statistics_sec": gathered, "distance_sec": sec}


def nan_guard(device: torch.device, quick: bool) -> Result:
    """A step with an image that is not a number leaves the weights as they are, and is counted."""
    system = make_system("toy", "fp32", "instance", 4, device)
    shown = Conditions(system, "toy", 4, "none", device)
    phase = next(phase for phase in system.phases if phase.name == "Dmain")
    shown.run(phase)
    before = {key: value.clone() for key, value in system.networks["D"].state_dict().items()}
    good, bad = shown.step(), shown.real.clone()
    bad[0, 0, 0, 0] = torch.nan
    system.run(phase, [Step(good.networks, bad, good.real_cond, good.z, good.gen_cond, good.augment)])
    assert all(torch.equal(before[key], value) for key, value in system.networks["D"].state_dict().items())
    system.guard.check(2)
    shown.run(phase)
    changed = sum(not torch.equal(before[key], value) for key, value in system.networks["D"].state_dict().items())
    assert changed > 0
    return {"tensors_changed_by_a_good_step": changed}


def processes(device: torch.device, quick: bool) -> Result:
    """A group of one process: does NCCL (on the CPU gloo) start, and add up?"""
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        meet = f"file://{folder}/meet"
        torch.distributed.init_process_group(backend, init_method=meet, rank=0, world_size=1)
        x = torch.ones(1 << (10 if quick else 24), device=device)
        torch.distributed.all_reduce(x)  # the first one makes the connections
        sec = wall_seconds(lambda: torch.distributed.all_reduce(x), device)
        total = float(x.sum())
        torch.distributed.destroy_process_group()
    assert total == x.numel()
    return {"backend": backend, "elements": x.numel(), "sec": sec}


PARTS: dict[str, Part] = {  # what matters most comes first
    "build": Part(build, 150),
    "correctness": Part(correctness, 60, needs_native=True),
    "convolutions": Part(convolutions, 30, needs_native=True),
    "nan-guard": Part(nan_guard, 30),
    "large": Part(large, 40, needs_native=True),
    "floor": Part(floor, 90, needs_native=True),
    "step-fp32": Part(step("paper256", "fp32"), 60),
    "step-fp16": Part(step("paper256", "fp16"), 60),
    "step-fp16-ref": Part(step("paper256", "fp16", mode="ref"), 60),
    "graphs-equal": Part(graphs_equal, 60),
    "step-fp16-graphs": Part(step("paper256", "fp16", graphs=True), 60),
    "step-bf16": Part(step("paper256", "bf16"), 60),
    "step-tf32": Part(step("paper256", "tf32"), 60),
    "step-fp16-ada": Part(step("paper256", "fp16", aug="ada"), 60),
    "biggan-fp32": Part(step("biggan64", "fp32"), 60),
    "biggan-bf16": Part(step("biggan64", "bf16"), 60),
    "modulation": Part(modulation, 40),
    "generate": Part(generate, 60),
    "loader": Part(loader, 60),
    "neighbours": Part(neighbours, 60),
    "statistics": Part(statistics, 60),
    "processes": Part(processes, 30),
    "compiled": Part(compiled, 120),
}
