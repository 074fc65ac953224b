"""Published checkpoints: written here in the published layout, converted, and compared with published images."""

import collections
import io
import json
import os
import pickle
import random
import sys
import tracemalloc
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Refused, invoke
from safetensors import safe_open
from test_networks import Published, assert_near

import generate
from stylegan2_icgan import convert
from stylegan2_icgan.models import load_model
from stylegan2_icgan.published_files.networks import from_pickle
from stylegan2_icgan.published_files.pickle_reader import Refusal
from training.checkpoint import load_snapshot
from training.networks import biggan

DATA = Path(__file__).parent / "data"
STORED = {"instance": ("stylegan2_instance_32", "stylegan2_instance_32_G"), "both": ("stylegan2_class_instance_16",)}
CPU = torch.device("cpu")
Dump = Callable[..., Path]


class PublishedPickles:
    """Pickles objects as StyleGAN2-ADA-PyTorch does, by functions of its names that fail when they are called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def _reconstruct_persistent_obj(meta: object) -> None:
            raise AssertionError("the file was executed")

        self.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
        self.reconstruct = _reconstruct_persistent_obj
        self.reconstruct.__module__ = "torch_utils.persistence"
        self.reconstruct.__qualname__ = "_reconstruct_persistent_obj"
        for name, members in {
            "torch_utils.persistence": {"_reconstruct_persistent_obj": self.reconstruct},
            "dnnlib": {},
            "dnnlib.util": {"EasyDict": self.EasyDict},
        }.items():
            module = types.ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)

    def easy(self, value: Any) -> Any:
        """Dictionaries all the way down of the published kind."""
        return self.EasyDict({k: self.easy(v) for k, v in value.items()}) if isinstance(value, dict) else value

    def module(self, module: torch.nn.Module, kwargs: Mapping[str, Any] | None = None) -> object:
        """What a module is pickled as: a call with its source text and its attributes."""
        state = {name: value for name, value in vars(module).items() if name.startswith("_") or name == "training"}
        state |= {"_init_args": (), "_init_kwargs": self.easy(dict(kwargs or {}))}
        state |= {"weight_gain": np.float64(0.5), "act_gain": np.float32(1.5), "dtype": torch.float16, "sizes": [4, 8]}
        for group in ("_parameters", "_buffers"):
            state[group] = collections.OrderedDict(state[group])
        children = module._modules.items()
        state["_modules"] = collections.OrderedDict(
            (name, None if child is None else self.module(child)) for name, child in children
        )
        meta = {"type": "class", "version": 6, "module_src": "import os\nos.abort()\n", "state": state}
        return Reduced(self.reconstruct, (meta | {"class_name": type(module).__name__},))


class Reduced:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.args


@pytest.fixture
def published_pickles(monkeypatch: pytest.MonkeyPatch) -> PublishedPickles:
    return PublishedPickles(monkeypatch)


def kwargs_of(o: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the published training script gives both constructors."""
    common = {name: o[name] for name in ("c_dim", "h_dim", "img_resolution", "img_channels")}
    shared = {name: o[name] for name in ("channel_base", "channel_max")} | {"num_fp16_res": 4, "conv_clamp": 256}
    mapping = {"num_layers": o["mapping_layers"]}
    g = common | {"z_dim": o["z_dim"], "w_dim": o["w_dim"], "mapping_kwargs": mapping, "synthesis_kwargs": shared}
    d = common | shared | {"mapping_kwargs": mapping, "block_kwargs": {}, "architecture": o["d_architecture"]}
    return g, d | {"epilogue_kwargs": {"mbstd_group_size": o["mbstd_group_size"]}}


@pytest.fixture
def dump(published_pickles: PublishedPickles, tmp_path: Path) -> Dump:
    """Write a whole pickle of a stored network; `change` may alter what the constructors were given."""

    def write(published: Published, protocol: int = 4, change: Callable[..., None] = lambda g, d: None) -> Path:
        g_kwargs, d_kwargs = kwargs_of(published.config)
        change(g_kwargs, d_kwargs)
        content = {
            "training_set_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": "x.zip"},
            "G": published_pickles.module(published.G, g_kwargs),
            "D": published_pickles.module(published.D, d_kwargs),
            "G_ema": published_pickles.module(published.G, g_kwargs),
            "augment_pipe": None,
        }
        path = tmp_path / "published.pkl"
        path.write_bytes(pickle.dumps(content, protocol))
        return path

    return write


@pytest.fixture(scope="module")
def stored() -> dict[str, Published]:
    return {name: Published(files) for name, files in STORED.items()}


# StyleGAN2


@pytest.mark.parametrize(("cond", "protocol"), [("instance", 2), ("instance", 4), ("both", 3)])
def test_a_pickle_gives_the_published_images_and_logits(
    stored: dict[str, Published], dump: Dump, tmp_path: Path, cond: str, protocol: int
) -> None:
    published, target = stored[cond], tmp_path / "ours.pt"
    result = invoke(convert.main, dump(published, protocol), target)
    assert result.exit_code == 0, result.output
    assert "keep the licence" in result.output
    model = load_model(target, CPU)
    options = model.recipe.options
    assert (options["conv_clamp"], options["num_fp16_res"]) == (256.0, 4)
    assert options["d_architecture"] == published.config["d_architecture"]
    assert set(model.snapshot.networks) == {"G", "D", "G_ema"}
    published.assert_near("ws", model.generator.mapping(published.z, published.c, published.h))
    images = model.generator(published.z, published.c, published.h, noise_mode="const")
    assert_near(images, published.arrays["out.img_noise_const"].clamp(-256, 256))
    for name, tensor in published.D.state_dict().items():
        assert torch.equal(model.snapshot.networks["D"][name], tensor)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_state_dict_needs_only_what_shapes_do_not_tell(
    stored: dict[str, Published], tmp_path: Path, refused: Refused, ending: str
) -> None:
    published = stored["both"]
    path, discriminator = tmp_path / f"G_ema.{ending}", tmp_path / "D.pth"
    state = {f"module.{name}": value for name, value in published.part("G.").items()}
    if ending == "pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    torch.save({"state_dict": published.part("D.")}, discriminator)
    flags = [f"--discriminator={discriminator}", "--conv-clamp=256", "--num-fp16-res=4"]
    assert invoke(convert.main, path, tmp_path / "ours.pt", *flags).exit_code == 0
    model = load_model(tmp_path / "ours.pt", CPU)
    published.assert_near("img_noise_const", model.generator(published.z, published.c, published.h, noise_mode="const"))
    assert (model.recipe.options["conv_clamp"], set(model.snapshot.networks)) == (256.0, {"D", "G_ema"})
    assert "above 0" in refused(convert.main, path, tmp_path / "other.pt", "--map-lr=0")
    assert not (tmp_path / "other.pt").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda g, d: d.update(conv_clamp=128), "it has conv_clamp 128.0, the generator 256.0"),
        (lambda g, d: d["epilogue_kwargs"].update(mbstd_num_channels=2), "it has a network made with a mbstd_num_ch"),
        (lambda g, d: d.update(blur=1), "it has a network made with blur, which is unknown here"),
    ],
)
def test_a_discriminator_that_does_not_fit_is_left_out_and_said_to_be(
    stored: dict[str, Published], dump: Dump, tmp_path: Path, change: Any, reason: str
) -> None:
    result = invoke(convert.main, dump(stored["both"], change=change), tmp_path / "ours.pt")
    assert f"note: D is left out: {reason}" in result.output
    assert set(load_snapshot(tmp_path / "ours.pt").networks) == {"G", "G_ema"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda g, d: g["synthesis_kwargs"].update(activation="swish"),
            "activation of its own; here it is always lrelu",
        ),
        (lambda g, d: g["synthesis_kwargs"].update(use_noise=False), "use_noise"),
        (lambda g, d: g.update(attention=True), "made with attention, which is unknown here"),
        (lambda g, d: g["mapping_kwargs"].update(lr_multiplier="much"), "lr_multiplier that is no number"),
        (lambda g, d: g["mapping_kwargs"].update(lr_multiplier=0), "above 0"),
    ],
)
def test_what_our_networks_can_not_equal_is_refused_by_name(
    stored: dict[str, Published], dump: Dump, tmp_path: Path, refused: Refused, change: Any, expected: str
) -> None:
    assert expected in refused(convert.main, dump(stored["both"], change=change), tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


def test_tensors_have_to_fit_one_by_one(stored: dict[str, Published], tmp_path: Path, refused: Refused) -> None:
    def message(change: Callable[[dict[str, torch.Tensor]], object]) -> str:
        state = stored["both"].part("G.")
        change(state)
        torch.save(state, tmp_path / "G.pth")
        return refused(convert.main, tmp_path / "G.pth", tmp_path / "ours.pt")

    assert "lacks synthesis.b8.conv0.bias of the generator" in message(lambda s: s.pop("synthesis.b8.conv0.bias"))
    assert "has 'extra', which the" in message(lambda s: s.update(extra=torch.ones(1))).replace("extra", "'extra'")
    assert "synthesis.b8.conv0.bias of shape [9]" in message(
        lambda s: s.update({"synthesis.b8.conv0.bias": torch.ones(9)})
    )
    assert "no generator of StyleGAN2 or BigGAN" in message(lambda s: s.pop("synthesis.b4.conv1.weight"))
    assert "expected 4, 8, 16" in message(
        lambda s: [s.pop(name) for name in list(s) if name.startswith("synthesis.b8.")]
    )


def test_state_dicts_that_claim_or_hide_more_than_they_hold(
    stored: dict[str, Published], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them may get as far as a network: one of the claimed size would fill the memory."""
    monkeypatch.setattr("stylegan2_icgan.published_files.networks.fit", lambda *args: pytest.fail("a network is built"))
    path, whole = tmp_path / "G.pth", stored["both"].part("G.")

    def message(**changes: torch.Tensor) -> str:
        torch.save(whole | {name.replace("__", "."): value for name, value in changes.items()}, path)
        return refused(convert.main, path, tmp_path / "ours.pt")

    thin = torch.ones(30_000, 1, 1, 1)
    assert "ask for [30000, 30000, 3, 3]" in message(synthesis__b4__conv1__weight=thin)
    assert "ask for [8, 8]" in message(synthesis__b8__conv1__noise_const=torch.ones(1, 1))
    assert "ask for [48, 48]" in message(**{f"mapping__fc{i}__weight": torch.ones(1, 1) for i in range(4, 5000)})
    assert "expected 2 axes of 1 to" in message(mapping__embed__weight=torch.ones(1, 100_000))
    assert "and claims to hold tensors of" in message(mapping__embed__weight=torch.ones(1, 1).expand(48, 1 << 40))
    assert "holds objects beside tensors (posix.system)" in message(payload=Payload())  # type: ignore[arg-type]
    torch.save(whole, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "has compressed members" in refused(convert.main, path, tmp_path / "ours.pt")


# BigGAN


@pytest.fixture(scope="module")
def published_biggan() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Arrays of a published network, cut to fit the repository."""
    arrays: dict[str, torch.Tensor] = {}
    for path in sorted(DATA.glob("biggan_instance_64_*.safetensors")):
        with safe_open(path, "pt") as file:
            arrays |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            config = json.loads(file.metadata()["config"])
    for key in [key for key in arrays if key.startswith("int16.")]:
        name = key.removeprefix("int16.")
        arrays[name] = arrays.pop(key) * arrays.pop(f"scale.{name}")
    return config, arrays


def test_biggan_state_dicts_give_the_published_images(
    published_biggan: tuple[dict[str, Any], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    _, arrays = published_biggan
    for network in "GD":
        part = {name[2:]: value for name, value in arrays.items() if name.startswith(f"{network}.")}
        torch.save(part, tmp_path / f"{network}.pth")
    result = invoke(convert.main, tmp_path / "G.pth", tmp_path / "ours.pt", f"--discriminator={tmp_path / 'D.pth'}")
    assert result.exit_code == 0, result.output
    assert "note: shared.weight is left out" in result.output
    model = load_model(tmp_path / "ours.pt", CPU)
    images = model.generator(arrays["in.z"], None, arrays["in.h"])
    assert (images - arrays["out.img"]).abs().max() < 1e-3
    assert "linear_feat.weight" in model.snapshot.networks["D"]


@pytest.mark.parametrize(
    "given",
    [
        {"c_dim": 5, "h_dim": 7},
        {"c_dim": 5},
        {"c_dim": 5, "hier": False, "img_resolution": 32},
        {"c_dim": 5, "shared": False, "hier": False},
        {"c_dim": 5, "deep": True, "z_dim": 9},
        {"c_dim": 0, "h_dim": 7, "attention": (8, 16)},
    ],
    ids=["both", "class", "flat", "sagan", "deep", "instance"],
)
def test_every_biggan_is_known_by_its_shapes(tmp_path: Path, given: dict[str, Any]) -> None:
    torch.manual_seed(0)
    options = {"img_resolution": 16, "img_channels": 3, "z_dim": 12, "ch": 4, "shared_dim": 3, "shared_dim_feat": 5}
    G = biggan.Generator(**options | given, init="normal").eval()
    torch.save(G.state_dict(), tmp_path / "G_ema.pth")
    result = invoke(convert.main, tmp_path / "G_ema.pth", tmp_path / "ours.pt")
    assert result.exit_code == 0, result.output
    ours = load_model(tmp_path / "ours.pt", CPU).generator
    z, c, h = torch.randn(2, G.z_dim), torch.eye(2, G.c_dim), torch.randn(2, G.h_dim)
    assert torch.equal(G(z, c, h), ours(z, c, h))
    assert (ours.z_dim, ours.c_dim, ours.h_dim) == (G.z_dim, G.c_dim, G.h_dim)


# Hostile and damaged pickles


class Payload:
    """What an attacker would have executed."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def legacy_storage(description: object, tail: bytes) -> bytes:
    """The bytes that a tensor keeps its values in."""
    file = io.BytesIO()
    for header in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
        pickle.dump(header, file, 2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return description if value is description else None

    Pickler(file, 2).dump(description)
    pickle.dump(["0"], file, 2)
    return file.getvalue() + tail


def load_from_bytes(content: bytes) -> Reduced:
    return Reduced(torch.storage._load_from_bytes, (content,))


def tensor_of(content: bytes, size: tuple[int, ...], stride: tuple[int, ...]) -> Reduced:
    rebuild = torch._utils._rebuild_tensor_v2
    return Reduced(rebuild, (load_from_bytes(content), 0, size, stride, False, collections.OrderedDict()))


def nested(depth: int) -> bytes:
    """A key that is a tuple in a tuple in a tuple ...; hashing it would overflow the stack."""
    return b"\x80\x02})" + b"\x85" * depth + b"Ns."


def floats(count: int) -> tuple[object, ...]:
    """How a pickle of torch refers to values beside it."""
    return ("storage", torch.FloatStorage, "0", "cpu", count, None)


FOUR = legacy_storage(floats(4), (4).to_bytes(8, "little") + bytes(16))
HUGE = 1 << 50
HOSTILE: dict[str, tuple[Any, str]] = {
    "os.system": ({"G_ema": Payload()}, "names posix.system"),
    "eval": ({"G_ema": Reduced(eval, ("1",))}, "names __builtin__.eval"),
    "getattr": (Reduced(getattr, ("", "join")), "names __builtin__.getattr"),
    "torch.load": (Reduced(torch.load, ("x",)), "names torch.serialization.load"),
    "nested pickle": (load_from_bytes(pickle.dumps(Payload())), "names posix.system"),
    "nested storage": (load_from_bytes(legacy_storage(Payload(), b"")), "names posix.system"),
    "zip inside": (load_from_bytes(b"PK\x03\x04" + bytes(100)), "damaged"),
    "values that are not there": (
        load_from_bytes(legacy_storage(floats(HUGE), HUGE.to_bytes(8, "little"))),
        f"announces {HUGE:,} values",
    ),
    "tensor beyond its storage": (tensor_of(FOUR, (2, 3), (3, 1)), "a tensor of 6 values in a storage of 4"),
    "tensor that repeats its storage": (tensor_of(FOUR, (1 << 20, 1 << 20), (0, 0)), "values in a storage of 4"),
    "array that is not there": (
        Reduced(np._core.multiarray._reconstruct, (np.ndarray, (HUGE,), b"b")), "no network G_ema"),
    "object": (collections.Counter(), "names collections.Counter"),
    "no dictionary": ([1, 2, 3], "no network G_ema"),
    "length of bytes": (b"\x80\x04\x8e" + HUGE.to_bytes(8, "little") + b"abc.", "damaged"),
    "place in the memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "no network G_ema"),
    "frame": (b"\x80\x04\x95" + HUGE.to_bytes(8, "little") + b"}.", "no network G_ema"),
    "many steps": (b"\x80\x04" + b"\x8f0" * 10_000 + b"}.", "more than 20,000 steps"),
    "deep key": (nested(19_000), "damaged"),
    "class by opcode": (b"\x80\x02(S'ls'\nios\nsystem\n.", "opcode INST"),
    "extension": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "reference beside": (b"\x80\x02K\x01Q.", "refers to data beside it"),
    "protocol alone": (b"\x80\x04", "damaged"),
    "stack underflow": (b"\x80\x04\x86.", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_refused_by_name_and_make_nothing_large(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stylegan2_icgan.published_files.pickle_reader.MOST_STEPS", 20_000)
    content, expected = HOSTILE[kind]
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 2))
    tracemalloc.start()
    message = refused(convert.main, path, tmp_path / "ours.pt")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert expected in message
    assert str(path) in message
    assert peak < 50 << 20
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hostile.pkl"]


def test_a_module_that_holds_itself_again_and_again_is_refused(
    published_pickles: PublishedPickles, tmp_path: Path, refused: Refused
) -> None:
    def record(children: dict[str, object]) -> Reduced:
        state = {"_parameters": {}, "_buffers": {}, "_modules": children}
        return Reduced(published_pickles.reconstruct, ({"type": "class", "class_name": "X", "state": state},))

    module = record({})
    for _ in range(40):  # 2^40 paths
        module = record({"a": module, "b": module})
    (tmp_path / "again.pkl").write_bytes(pickle.dumps({"G_ema": module}, 4))
    assert "more than 10,000 modules" in refused(convert.main, tmp_path / "again.pkl", tmp_path / "ours.pt")


def test_cut_and_changed_pickles_are_read_rightly_or_refused(stored: dict[str, Published], dump: Dump) -> None:
    """Wherever the damage is: no other error, nothing executed."""
    path = dump(stored["both"])
    whole, rng, outcomes = path.read_bytes(), random.Random(0), collections.Counter[str]()
    ends = [rng.randrange(len(whole)) for _ in range(10)]
    changes = [(rng.randrange(3000), rng.randrange(256)) for _ in range(40)]  # names and structure come first
    changes += [(rng.randrange(len(whole)), rng.randrange(256)) for _ in range(10)]
    damaged = [whole[:end] for end in ends]
    damaged += [whole[:place] + bytes([value]) + whole[place + 1 :] for place, value in changes]
    for content in damaged:
        path.write_bytes(content)
        try:
            from_pickle(path)
            outcomes["read"] += 1
        except Refusal as refusal:
            assert "\n" not in str(refusal)
            outcomes["refused"] += 1
    assert outcomes["refused"] >= 20


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        (b"", "has 0 bytes"),
        (b"not a network", "can't be read"),
        (b"PK\x03\x04" + bytes(50), "can't be read"),
        (pickle.dumps({"a": 1}), "has no network G_ema"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, refused: Refused, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "in.pkl").write_bytes(content)
    assert expected in refused(convert.main, tmp_path / "in.pkl", tmp_path / "out.pt")


def test_flags_and_places_that_can_not_be(
    stored: dict[str, Published], dump: Dump, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, target = dump(stored["both"]), tmp_path / "ours.pt"
    assert "--discriminator: " in refused(convert.main, path, target, f"--discriminator={path}")
    assert "--conv-clamp: " in refused(convert.main, path, target, "--conv-clamp=256")
    assert "is IN" in refused(convert.main, path, path)
    assert "its folder is not there" in refused(convert.main, path, tmp_path / "nowhere" / "ours.pt")
    assert "it is a folder" in refused(convert.main, path, tmp_path)
    torch.save(stored["both"].part("G."), tmp_path / "G.pth")
    assert "no.pth does not exist" in refused(convert.main, tmp_path / "G.pth", target, "--discriminator=no.pth")
    assert "say of which network" in refused(convert.main, path, target, f"--extractor-weights={path}")
    assert "--extractor=pca is no network" in refused(convert.main, path, target, "--extractor=pca")

    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("training.checkpoint.torch.save", full)
    assert "No space left" in refused(convert.main, path, target)
    assert not target.exists()


# Exemplars


def instances(num: int = 6, width: int = 64, classes: int = 10) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    paths = np.array([f"train/n{i:05d}.JPEG" for i in range(num)], dtype=object)
    features = rng.normal(size=(num, width)).astype(np.float32)
    return {"instance_features": features, "labels": rng.integers(0, classes, num), "image_path": paths}


@pytest.fixture
def both_state(stored: dict[str, Published], tmp_path: Path) -> Path:
    path = tmp_path / "G_ema.pth"
    torch.save(stored["both"].part("G."), path)
    return path


@pytest.mark.parametrize("layout", ["arrays", "lists"])
def test_published_instances_become_exemplars(both_state: Path, tmp_path: Path, layout: str) -> None:
    given, target, npy = instances(), tmp_path / "ours.pt", tmp_path / "instances.npy"
    content = given if layout == "arrays" else {k: v if v.ndim == 2 else v.tolist() for k, v in given.items()}
    np.save(npy, content, allow_pickle=True)  # type: ignore[arg-type]  # as published: a dictionary
    assert invoke(convert.main, both_state, target, f"--exemplars={npy}").exit_code == 0
    exemplars = load_snapshot(target).exemplars
    lengths = np.linalg.norm(given["instance_features"], axis=1, keepdims=True)
    assert np.allclose(exemplars.condition.h, given["instance_features"] / lengths, atol=1e-6)
    assert exemplars.condition.c.argmax(dim=1).tolist() == given["labels"].tolist()
    assert exemplars.names == given["image_path"].tolist()
    result = invoke(generate.main, f"--network={target}", "--rows=0-2", "--seeds=0", f"--outdir={tmp_path / 'images'}")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "images").glob("exemplar*.png"))) == 3


def test_instances_that_can_not_be_used_are_refused(both_state: Path, tmp_path: Path, refused: Refused) -> None:
    npy = tmp_path / "instances.npy"

    def message(content: object) -> str:
        np.save(npy, content, allow_pickle=True)  # type: ignore[arg-type]
        return refused(convert.main, both_state, tmp_path / "ours.pt", f"--exemplars={npy}")

    assert "names posix.system" in message({"instance_features": Payload()})
    assert not Path("executed").exists()
    assert "the model takes rows of width 64" in message(instances(width=63))
    assert "has labels 0 to" in message(instances() | {"labels": np.array([0, 1, 2, 3, 4, 10])})
    assert "has no 'labels'" in message({"instance_features": instances()["instance_features"]})
    assert "a feature without direction, row 2" in message(
        instances() | {"instance_features": instances()["instance_features"] * (np.arange(6) != 2)[:, None]}
    )
    assert "has no 'instance_features'" in message({"x": np.ones(3)})
    assert "no dictionary" in message(np.array([None, 1], dtype=object))
    npy.write_bytes(npy.read_bytes()[:-5])
    assert "cut short" in refused(convert.main, both_state, tmp_path / "ours.pt", f"--exemplars={npy}")
    npy.write_bytes(b"nothing")
    assert "is no .npy file" in refused(convert.main, both_state, tmp_path / "ours.pt", f"--exemplars={npy}")
    assert not (tmp_path / "ours.pt").exists()


def test_rows_of_features_do_too_and_nothing_unwanted_is_taken(
    stored: dict[str, Published], tmp_path: Path, refused: Refused
) -> None:
    torch.save(stored["instance"].part("G."), tmp_path / "G.pth")
    np.save(tmp_path / "rows.npy", np.ones((3, 128)))
    flags = [tmp_path / "G.pth", tmp_path / "ours.pt"]
    assert invoke(convert.main, *flags, f"--exemplars={tmp_path / 'rows.npy'}").exit_code == 0
    assert load_snapshot(tmp_path / "ours.pt").exemplars.names[2] == "instance00002"
    G = biggan.Generator(z_dim=6, c_dim=3, img_resolution=16, img_channels=3, ch=2, init="normal")
    torch.save(G.state_dict(), tmp_path / "G.pth")
    assert "not conditioned on instances" in refused(convert.main, *flags, f"--exemplars={tmp_path / 'rows.npy'}")
    assert invoke(convert.main, *flags).exit_code == 0
    assert torch.equal(load_snapshot(tmp_path / "ours.pt").exemplars.condition.c, torch.eye(3))


def test_the_extractor_is_recorded_so_that_images_can_condition(
    both_state: Path, tmp_path: Path, refused: Refused
) -> None:
    timm = pytest.importorskip("timm")
    weights = tmp_path / "vit.pth"
    torch.save(timm.create_model("test_vit").state_dict(), weights)
    flags = ["--extractor=timm:test_vit.r160_in1k", f"--extractor-weights={weights}"]
    target = tmp_path / "ours.pt"
    result = invoke(convert.main, both_state, target, *flags)
    assert result.exit_code == 0, result.output
    description = load_snapshot(target).exemplars.extractor
    assert (description["h_dim"], description["images"]["transform"]) == (64, "center-crop")


@pytest.fixture(autouse=True)
def _nothing_executed(tmp_path: Path) -> Iterator[None]:
    yield
    assert not Path("executed").exists()
    assert not (tmp_path / "executed").exists()
