"""StyleGAN2 networks: against arrays of the published ones (tests/data), against definitions, and at their doors."""

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.autograd import gradcheck, gradgradcheck

from stylegan2_icgan.networks import Discriminator, Generator
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import setup_filter
from training.networks import pyramid, stylegan2, stylegan2_discriminator
from training.networks.layers import (
    Conv2dLayer,
    FullyConnectedLayer,
    MinibatchStdLayer,
    modulated_conv2d,
    normalize_2nd_moment,
)

DATA = Path(__file__).parent / "data"
WIDTHS = [(0, 0), (5, 0), (0, 7), (5, 7)]  # c_dim, h_dim


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def assert_near(actual, expected, tolerance=1e-4):
    """To `tolerance` of the expected tensor's own scale."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def make_generator(c_dim=0, h_dim=0, img_resolution=16, img_channels=3, mapping_kwargs=None, **synthesis_kwargs):
    """A small generator whose noise shows."""
    G = Generator(
        z_dim=6,
        c_dim=c_dim,
        w_dim=8,
        img_resolution=img_resolution,
        img_channels=img_channels,
        h_dim=h_dim,
        mapping_kwargs={"num_layers": 2} | (mapping_kwargs or {}),
        synthesis_kwargs={"channel_base": 128, "channel_max": 12} | synthesis_kwargs,
    )
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.5)
    return G


def make_discriminator(c_dim=0, h_dim=0, img_resolution=16, img_channels=3, **options):
    options = {"mapping_kwargs": {"num_layers": 2}} | options
    return Discriminator(c_dim, img_resolution, img_channels, h_dim=h_dim, channel_base=128, channel_max=12, **options)


def condition(num, c_dim, h_dim):
    c = torch.nn.functional.one_hot(torch.arange(num) % c_dim, c_dim).float() if c_dim else None
    return c, torch.nn.functional.normalize(torch.randn(num, h_dim), dim=1) if h_dim else None


# The published networks


class Published:
    """Configuration and arrays of a stored network, and ours with its parameters."""

    def __init__(self, files):
        self.arrays = {}
        for name in files:
            with safe_open(DATA / f"{name}.safetensors", "pt") as file:
                self.arrays |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                self.config = json.loads((file.metadata() or {}).get("config", "null")) or getattr(self, "config", None)
        o = self.config
        channels = {"channel_base": o["channel_base"], "channel_max": o["channel_max"]}
        mapping = {"num_layers": o["mapping_layers"]}
        common = {name: o[name] for name in ("c_dim", "h_dim", "img_resolution", "img_channels")}
        self.G = Generator(
            z_dim=o["z_dim"], w_dim=o["w_dim"], mapping_kwargs=mapping, synthesis_kwargs=channels, **common
        )
        self.D = Discriminator(
            architecture=o["d_architecture"],
            mapping_kwargs=mapping,
            epilogue_kwargs={"mbstd_group_size": o["mbstd_group_size"]},
            **channels,
            **common,
        )
        self.G.load_state_dict(self.part("G."), strict=True)
        self.D.load_state_dict(self.part("D."), strict=True)
        self.z, self.c, self.h = (self.arrays.get(f"in.{name}") for name in "zch")

    def part(self, prefix):
        return {
            name.removeprefix(prefix): value.clone() for name, value in self.arrays.items() if name.startswith(prefix)
        }

    def assert_near(self, name, actual):
        assert_near(actual, self.arrays["out." + name])


@pytest.fixture(
    scope="module",
    params=[("stylegan2_instance_32", "stylegan2_instance_32_G"), ("stylegan2_class_instance_16",)],
    ids=lambda files: files[0],
)
def published(request):
    return Published(request.param)


def test_published_ws(published):
    o = published.config
    published.assert_near("ws", published.G.mapping(published.z, published.c, published.h))
    truncation = {"truncation_psi": o["truncation_psi"], "truncation_cutoff": o["truncation_cutoff"]}
    ws = published.G.mapping(published.z, published.c, published.h, **truncation)
    published.assert_near("ws_truncated", ws)
    images = published.G(published.z, published.c, published.h, **truncation, noise_mode="none")
    published.assert_near("img_truncated_noise_none", images)


@pytest.mark.parametrize("fused_modconv", [False, True])
def test_published_images(published, fused_modconv):
    ws, truncated = published.arrays["out.ws"], published.arrays["out.ws_truncated"]
    synthesis = published.G.synthesis
    published.assert_near("img_noise_const", synthesis(ws, noise_mode="const", fused_modconv=fused_modconv))
    published.assert_near(
        "img_truncated_noise_none", synthesis(truncated, noise_mode="none", fused_modconv=fused_modconv)
    )


def test_published_logits(published):
    for images, name in (("in.real", "logits_real"), ("out.img_noise_const", "logits_fake")):
        published.assert_near(name, published.D(published.arrays[images], published.c, published.h))


def test_published_r1_and_its_gradient(published):
    real = published.arrays["in.real"].clone().requires_grad_()
    logits = published.D(real, published.c, published.h)
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    penalty = gradient.square().sum(dim=[1, 2, 3])
    published.assert_near("r1_penalty", penalty)
    names = [name.removeprefix("out.grad_r1.") for name in published.arrays if name.startswith("out.grad_r1.")]
    assert len(names) == 4
    parameters = [published.D.get_parameter(name) for name in names]
    for name, gradient in zip(names, torch.autograd.grad(penalty.mean(), parameters), strict=True):
        published.assert_near("grad_r1." + name, gradient)


@pytest.mark.parametrize("fused_modconv", [False, True])
def test_published_path_lengths(published, fused_modconv):
    ws = published.arrays["out.ws"].clone().requires_grad_()
    images = published.G.synthesis(ws, noise_mode="const", fused_modconv=fused_modconv)
    scaled = (images * published.arrays["in.pl_noise"]).sum() / published.config["img_resolution"]
    (gradient,) = torch.autograd.grad(scaled, ws)
    published.assert_near("path_lengths", gradient.square().sum(dim=2).mean(dim=1).sqrt())


# Conditions


@pytest.mark.parametrize(("c_dim", "h_dim"), WIDTHS)
@pytest.mark.parametrize("img_channels", [1, 3])
def test_every_condition_has_shapes_and_gradients(c_dim, h_dim, img_channels):
    G = make_generator(c_dim, h_dim, img_channels=img_channels)
    D = make_discriminator(c_dim, h_dim, img_channels=img_channels)
    for network in (G, D):
        assert (network.c_dim, network.h_dim) == (c_dim, h_dim)
        assert (network.img_resolution, network.img_channels) == (16, img_channels)
    assert (G.z_dim, G.w_dim, G.num_ws) == (6, 8, 6)

    c, h = condition(3, c_dim, h_dim)
    ws = G.mapping(torch.randn(3, 6), c, h)
    assert ws.shape == (3, 6, 8)
    images = G.synthesis(ws)
    assert images.shape == (3, img_channels, 16, 16) and images.dtype == torch.float32
    logits = D(images, c, h)
    assert logits.shape == (3, 1) and logits.dtype == torch.float32
    logits.square().sum().backward()
    for name, parameter in [*G.named_parameters(), *D.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("c_dim", "h_dim"), WIDTHS)
def test_each_condition_changes_images_and_logits(c_dim, h_dim):
    G, D, z, img = (
        make_generator(c_dim, h_dim),
        make_discriminator(c_dim, h_dim),
        torch.randn(2, 6),
        torch.randn(2, 3, 16, 16),
    )
    given = dict(zip("ch", condition(2, c_dim, h_dim), strict=True))
    for name, width in (("c", c_dim), ("h", h_dim)):
        if width == 0:
            continue
        other = given | {name: given[name].flip(0)}
        images, others = (G(z, **cond, noise_mode="const") for cond in (given, other))
        assert (images - others).abs().mean() > 0.01
        assert (D(img, **given) - D(img, **other)).abs().mean() > 1e-3


@pytest.mark.parametrize(("c_dim", "h_dim"), WIDTHS)
def test_absent_condition_is_none_or_of_width_zero(c_dim, h_dim):
    G, D, z = make_generator(c_dim, h_dim), make_discriminator(c_dim, h_dim), torch.randn(2, 6)
    c, h = condition(2, c_dim, h_dim)
    empty = [value if value is not None else torch.zeros(2, 0) for value in (c, h)]
    images = G(z, c, h, noise_mode="const")
    assert torch.equal(images, G(z, *empty, noise_mode="const"))
    assert torch.equal(D(images, c, h), D(images, *empty))


@pytest.mark.parametrize(("c_dim", "h_dim"), WIDTHS)
def test_no_images_at_all(c_dim, h_dim):
    G, D = make_generator(c_dim, h_dim), make_discriminator(c_dim, h_dim)
    c, h = torch.zeros(0, c_dim), torch.zeros(0, h_dim)
    for fused_modconv in (False, True):
        images = G.synthesis(G.mapping(torch.zeros(0, 6), c, h), fused_modconv=fused_modconv)
        assert images.shape == (0, 3, 16, 16)
    assert D(images, c, h).shape == (0, 1)


def test_embeddings_are_normalised_together():
    G = make_generator(c_dim=5, h_dim=7, mapping_kwargs={"num_layers": 1})
    c, h = condition(3, 5, 7)
    z = torch.randn(3, 6)
    mapping = G.mapping
    joined = torch.cat([mapping.embed(c), mapping.embed_feats(h)], dim=1)
    joined = joined / joined.square().mean(dim=1, keepdim=True).sqrt()
    x = torch.cat([z / z.square().mean(dim=1, keepdim=True).sqrt(), joined], dim=1)
    assert_near(mapping(z, c, h)[:, 0], mapping.fc0(x), 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"h": None}, r"h: this network takes instance features, \[N, 7\]; none given"),
        ({"c": None}, r"c: this network takes class labels, \[N, 5\]; none given"),
        ({"h": torch.zeros(2, 6)}, r"h: expected instance features \[2, 7\]; got \[2, 6\]"),
        ({"c": torch.zeros(2)}, r"c: expected class labels \[2, 5\]; got \[2\]"),
        ({"h": torch.zeros(3, 7)}, r"h: expected instance features \[2, 7\]; got \[3, 7\]"),
    ],
)
def test_wrong_condition_is_refused(arguments, message):
    G, D = make_generator(5, 7), make_discriminator(5, 7)
    arguments = {"c": torch.zeros(2, 5), "h": torch.zeros(2, 7)} | arguments
    for call in (lambda **cond: G(torch.zeros(2, 6), **cond), lambda **cond: D(torch.zeros(2, 3, 16, 16), **cond)):
        with pytest.raises(ValueError, match=message):
            call(**arguments)


@pytest.mark.parametrize(("name", "what"), [("c", "class labels"), ("h", "instance features")])
def test_condition_for_an_unconditional_network_is_refused(name, what):
    G, D = make_generator(), make_discriminator()
    for call in (lambda **cond: G(torch.zeros(2, 6), **cond), lambda **cond: D(torch.zeros(2, 3, 16, 16), **cond)):
        with pytest.raises(ValueError, match=rf"{name}: expected {what} \[2, 0\], or None: .* got \[2, 4\]"):
            call(**{name: torch.zeros(2, 4)})


def test_wrong_inputs_are_refused():
    G, D = make_generator(), make_discriminator()
    with pytest.raises(ValueError, match=r"z: this network takes noise, \[N, 6\]; none given"):
        G.mapping(None)
    with pytest.raises(ValueError, match=r"z: expected noise \[N, 6\]; got \[2, 5\]"):
        G(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"ws: expected \[N, 6, 8\], got \[2, 8\]"):
        G.synthesis(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="noise_mode: 'constant' is not one of random, const, none"):
        G(torch.zeros(2, 6), noise_mode="constant")
    with pytest.raises(ValueError, match=r"img: .* \[N, 3, 16, 16\] .* got torch.float32 \[2, 3, 8, 8\]"):
        D(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"img: expected floating-point .* got torch.uint8"):
        D(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_base_networks_take_labels_but_no_instances():
    options = {"c_dim": 5, "img_resolution": 8, "img_channels": 3}
    small = {"channel_base": 64, "channel_max": 8}
    G = stylegan2.Generator(z_dim=6, w_dim=8, synthesis_kwargs=small, **options)
    D = stylegan2_discriminator.Discriminator(**small, **options)
    c, _ = condition(2, 5, 0)
    assert D(G(torch.randn(2, 6), c), c).shape == (2, 1)
    assert (G.h_dim, D.h_dim) == (0, 0)
    with pytest.raises(ValueError, match=r"h: expected instance features \[2, 0\], or None"):
        G(torch.randn(2, 6), c, torch.zeros(2, 7))


# Constructors


@pytest.mark.parametrize("c_dim", [0, 5])
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (make_generator, {"mapping_kwargs": {"num_layer": 3}}),
        (make_generator, {"chanel_base": 64}),
        (make_generator, {"num_fp16_ress": 1}),
        (make_discriminator, {"mapping_kwargs": {"num_layer": 3}}),
        (make_discriminator, {"block_kwargs": {"freeze_layer": 3}}),
        (make_discriminator, {"epilogue_kwargs": {"mbstd_group": 3}}),
        (make_discriminator, {"chanel_base": 64}),
    ],
)
def test_misspelt_option_is_refused(make, arguments, c_dim):
    inner = next(iter(arguments.values()))
    name = next(iter(inner if isinstance(inner, dict) else arguments))
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        make(c_dim, **arguments)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (make_generator, {"img_resolution": 24}, "img_resolution: 24 is not a power of two >= 8"),
        (make_generator, {"img_resolution": 4}, "img_resolution: 4 is not"),
        (make_generator, {"architecture": "dense"}, "architecture: 'dense' is not one of orig, skip, resnet"),
        (make_generator, {"channel_base": 8}, "channel_base: 8 // 16 .* no channels"),
        (make_generator, {"activation": "gelu"}, "activation: 'gelu' is not one of"),
        (make_generator, {"mapping_kwargs": {"num_layers": 0}}, "num_layers: 0"),
        (make_discriminator, {"img_resolution": 24}, "img_resolution: 24 is not"),
        (make_discriminator, {"architecture": "dense"}, "architecture: 'dense' is not"),
        (make_discriminator, {"epilogue_kwargs": {"mbstd_num_channels": 5}}, "mbstd_num_channels: 5 does not divide"),
        (make_discriminator, {"epilogue_kwargs": {"mbstd_group_size": 0}}, "mbstd_group_size: 0 is not"),
        (make_discriminator, {"c_dim": 5, "cmap_dim": 0}, "cmap_dim: 0"),
    ],
)
def test_impossible_option_is_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_every_mapping_option_changes_the_network():
    options = {"num_layers": 3, "embed_features": 4, "layer_features": 10, "activation": "relu"}
    z, (c, h) = torch.randn(2, 6), condition(2, 5, 7)

    def ws(**options):
        torch.manual_seed(1)
        return make_generator(5, 7, mapping_kwargs=options).mapping(z, c, h)

    for name, value in options.items():
        assert (ws(**{name: value}) - ws()).abs().max() > 1e-6, name
    G = make_generator(5, 7, mapping_kwargs=options | {"lr_multiplier": 0.001})
    assert 500 < G.mapping.fc1.weight.std() < 2000 and 0.5 < G.mapping.embed_feats.weight.std() < 2
    assert {name: list(value.shape) for name, value in G.mapping.named_parameters() if "weight" in name} == {
        "embed.weight": [4, 5],
        "embed_feats.weight": [4, 7],
        "fc0.weight": [10, 6 + 4 + 4],
        "fc1.weight": [10, 10],
        "fc2.weight": [8, 10],
    }


@pytest.mark.parametrize("g_architecture", ["orig", "skip", "resnet"])
@pytest.mark.parametrize("d_architecture", ["orig", "skip", "resnet"])
def test_architectures_at_64_pixels(g_architecture, d_architecture):
    G = make_generator(img_resolution=64, architecture=g_architecture)
    D = make_discriminator(img_resolution=64, architecture=d_architecture)
    assert G.num_ws == 10
    images = G(torch.randn(2, 6), noise_mode="const")
    assert images.shape == (2, 3, 64, 64)
    assert 0.1 < images.std() < 10
    logits = D(images)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in [*G.parameters(), *D.parameters()])

    # Which blocks lead to and from the image, and which have a skip connection.
    blocks = (8, 16, 32, 64)
    g_names, d_names = G.state_dict(), D.state_dict()
    for block in blocks:
        assert (f"synthesis.b{block}.torgb.weight" in g_names) == (block == 64 or g_architecture == "skip")
        assert (f"synthesis.b{block}.skip.weight" in g_names) == (g_architecture == "resnet")
        assert (f"b{block}.fromrgb.weight" in d_names) == (block == 64 or d_architecture == "skip")
        assert (f"b{block}.skip.weight" in d_names) == (d_architecture == "resnet")
    assert ("synthesis.b4.torgb.weight" in g_names) == (g_architecture == "skip")
    assert ("b4.fromrgb.weight" in d_names) == (d_architecture == "skip")
    assert D.b4.out.weight.shape == (1, 12)


def test_orig_and_resnet_images_come_from_the_last_block_alone():
    for architecture in ("orig", "resnet"):
        G = make_generator(architecture=architecture)
        G.synthesis.b16.torgb.weight.data.zero_()
        assert G(torch.randn(2, 6)).abs().max() == 0  # its bias starts at 0


def test_channels_follow_base_and_max():
    G = make_generator(img_resolution=64)
    channels = [G.synthesis.get_submodule(f"b{size}.conv1").weight.shape[0] for size in (4, 8, 16, 32, 64)]
    assert channels == [12, 12, 8, 4, 2]
    D = make_discriminator(img_resolution=64)
    assert [D.get_submodule(f"b{size}.conv1").weight.shape[:2] for size in (64, 32, 16, 8)] == [
        (4, 2),
        (8, 4),
        (12, 8),
        (12, 12),
    ]


def test_cmap_dim_is_the_width_of_the_mapped_condition():
    D = make_discriminator(5, 7, cmap_dim=20)
    assert D.b4.out.weight.shape == (20, 12)
    assert D.mapping(None, *condition(2, 5, 7)).shape == (2, 20)
    assert "mapping.w_avg" not in D.state_dict()


def test_without_noise_there_are_no_noise_parameters():
    G = make_generator(use_noise=False)
    assert not [name for name in G.state_dict() if "noise" in name]
    z = torch.randn(2, 6)
    assert torch.equal(G(z), G(z, noise_mode="none"))


def test_frozen_layers_are_buffers_of_the_same_names():
    D, frozen = make_discriminator(), make_discriminator(block_kwargs={"freeze_layers": 6})
    assert D.state_dict().keys() == frozen.state_dict().keys()
    names = {name for name, _ in D.named_parameters()} - {name for name, _ in frozen.named_parameters()}
    assert names == {
        "b16.fromrgb.weight",
        "b16.fromrgb.bias",
        "b16.conv0.weight",
        "b16.conv0.bias",
        "b16.conv1.weight",
        "b16.conv1.bias",
        "b16.skip.weight",
        "b8.conv0.weight",
        "b8.conv0.bias",
        "b8.conv1.weight",
        "b8.conv1.bias",
    }
    frozen.load_state_dict(D.state_dict())
    img = torch.randn(2, 3, 16, 16)
    assert torch.equal(D(img), frozen(img))


def test_networks_can_be_copied():
    G, D = make_generator(5, 7), make_discriminator(5, 7)
    z, (c, h) = torch.randn(2, 6), condition(2, 5, 7)
    images = G(z, c, h, noise_mode="const")
    assert torch.equal(copy.deepcopy(G).eval()(z, c, h, noise_mode="const"), images)
    assert torch.equal(copy.deepcopy(D)(images, c, h), D(images, c, h))


# Mapping


def test_w_avg_moves_only_when_told():
    G = make_generator().train()
    z = torch.randn(4, 6)
    for network in (G, G.eval()):
        network(z)
        network.mapping(z)
    assert G.mapping.w_avg.abs().max() == 0
    ws = G.mapping(z, update_w_avg=True)
    assert_near(G.mapping.w_avg, 0.005 * ws[:, 0].mean(dim=0), 1e-5)
    before = G.mapping.w_avg.clone()
    G.mapping(z, update_w_avg=True)
    assert_near(G.mapping.w_avg, 0.995 * before + 0.005 * ws[:, 0].mean(dim=0), 1e-5)
    assert not G.mapping.w_avg.requires_grad
    fast = make_generator(mapping_kwargs={"w_avg_beta": 0.5})
    ws = fast.mapping(z, update_w_avg=True)
    assert_near(fast.mapping.w_avg, 0.5 * ws[:, 0].mean(dim=0), 1e-5)


def test_truncation():
    G, z = make_generator(), torch.randn(4, 6)
    G.mapping.w_avg.copy_(torch.randn(8))
    ws, mean = G.mapping(z), G.mapping.w_avg
    assert_near(G.mapping(z, truncation_psi=0), mean.expand(4, 6, 8), 1e-6)
    half = G.mapping(z, truncation_psi=0.5, truncation_cutoff=2)
    assert_near(half[:, :2], (ws[:, :2] + mean) / 2, 1e-6)
    assert torch.equal(half[:, 2:], ws[:, 2:])
    assert torch.equal(G.mapping(z, truncation_psi=0.5, truncation_cutoff=0), ws)
    with pytest.raises(ValueError, match="truncation_psi"):
        make_discriminator(5).mapping(None, torch.zeros(1, 5), truncation_psi=0.5)


def test_mapping_ignores_the_length_of_z():
    G, z = make_generator(), torch.randn(4, 6)
    assert_near(G.mapping(3 * z), G.mapping(z), 1e-5)


# Synthesis


def test_noise_modes():
    G, z = make_generator().eval(), torch.randn(1, 6).repeat(2, 1)
    random, const, none = (G(z, noise_mode=mode) for mode in ("random", "const", "none"))
    assert (random[0] - random[1]).abs().max() > 0.01  # each image has noise of its own
    assert (random - G(z)).abs().max() > 0.01
    for fixed in (const, none):
        assert_near(fixed[0], fixed[1], 1e-5)
    assert torch.equal(const, G(z, noise_mode="const"))
    assert (const - none).abs().max() > 0.01
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.zero_()
    assert_near(G(z, noise_mode="random"), none, 1e-5)


@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
def test_fused_equals_unfused(architecture):
    G = make_generator(h_dim=7, architecture=architecture)
    ws = G.mapping(torch.randn(3, 6), None, torch.randn(3, 7))
    gradients = []
    for fused_modconv in (False, True):
        images = G.synthesis(ws, noise_mode="const", fused_modconv=fused_modconv)
        gradients.append(
            (images, *torch.autograd.grad(images.square().sum(), [ws, G.synthesis.b16.conv0.weight], retain_graph=True))
        )
    for unfused, fused in zip(*gradients, strict=True):
        assert_near(fused, unfused, 1e-5)


@pytest.mark.parametrize("fused_modconv", [False, True])
def test_images_of_a_batch_are_independent(fused_modconv):
    G = make_generator(h_dim=7)
    z, h = torch.randn(4, 6), torch.randn(4, 7)
    images = G.synthesis(G.mapping(z, None, h), noise_mode="const", fused_modconv=fused_modconv)
    for row in range(4):
        ws = G.mapping(z[row : row + 1], None, h[row : row + 1])
        assert_near(G.synthesis(ws, noise_mode="const", fused_modconv=fused_modconv), images[row : row + 1], 1e-5)


def test_each_w_reaches_its_layers():
    G = make_generator()
    ws = G.mapping(torch.randn(1, 6)).detach()
    images = G.synthesis(ws, noise_mode="none")
    for index in range(G.num_ws):
        other = ws.clone()
        other[:, index] += 5
        change = (G.synthesis(other, noise_mode="none") - images).abs().max()
        assert change > 1e-3, index


@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("size", "up"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_modulated_conv2d_equals_definition(size, up, demodulate, fused):
    x, weight, styles = torch.randn(2, 3, 4, 4), torch.randn(5, 3, size, size), torch.randn(2, 3)
    noise, f = torch.randn(2, 1, 4 * up, 4 * up), setup_filter([1, 3, 3, 1])
    expected = []
    for image, style, extra in zip(x, styles, noise, strict=True):
        w = weight.clone()
        for channel in range(3):
            w[:, channel] *= style[channel]
        if demodulate:
            for channel in range(5):
                w[channel] /= w[channel].square().sum().sqrt()
        expected.append(conv2d_resample(image[None], w, f, up=up, padding=size // 2, flip_weight=up == 1) + extra)
    actual = modulated_conv2d(
        x, weight, styles, noise, up, size // 2, f, demodulate=demodulate, flip_weight=up == 1, fused=fused
    )
    assert_near(actual, torch.cat(expected), 1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("size", "up"), [(1, 1), (3, 2)])
def test_modulated_conv2d_has_right_gradients(size, up, fused):
    shapes = [(2, 2, 3, 3), (2, 2, size, size), (2, 2), (2, 1, 3 * up, 3 * up)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    f = setup_filter([1, 2, 1])

    def convolve(x, weight, styles, noise):
        return modulated_conv2d(x, weight, styles, noise, up, size // 2, f, fused=fused)

    assert gradcheck(convolve, inputs)
    assert gradgradcheck(convolve, inputs, fast_mode=True)


# Precision


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_near_float32(monkeypatch, architecture, dtype):
    options = {"num_fp16_res": 2, "conv_clamp": 256, "architecture": architecture}
    G, D = make_generator(5, 7, **options), make_discriminator(5, 7, **options)
    tolerance = 0.02 if dtype == torch.float16 else 0.1
    z, (c, h) = torch.randn(4, 6), condition(4, 5, 7)
    ws = G.mapping(z, c, h).detach()
    ws = ws * torch.linspace(1, 300, 4)[:, None, None]  # styles whose products overflow unless normalised first
    images = G.synthesis(ws, noise_mode="const")  # float32: float16 is for CUDA
    logits = D(images, c, h)

    G.synthesis.low_dtype = D.low_dtype = dtype
    if dtype == torch.float16:  # as if this were a GPU
        gpu, compute_dtype = torch.device("cuda"), pyramid.compute_dtype
        for part in (stylegan2, stylegan2_discriminator):
            monkeypatch.setattr(part, "compute_dtype", lambda net, size, _, force: compute_dtype(net, size, gpu, force))
    for fused_modconv in (False, True):
        low = G.synthesis(ws, noise_mode="const", fused_modconv=fused_modconv)
        assert low.dtype == torch.float32
        assert 0 < (low - images).abs().max() < tolerance * images.abs().max()
    low = D(images, c, h)
    assert low.dtype == torch.float32
    assert 0 < (low - logits).abs().max() < tolerance * logits.abs().max()
    assert torch.equal(G.synthesis(ws, noise_mode="const", force_fp32=True), images)
    assert torch.equal(D(images, c, h, force_fp32=True), logits)


def test_low_precision_is_for_the_highest_resolutions():
    G = make_generator(num_fp16_res=1, low_dtype=torch.bfloat16)
    D = make_discriminator()
    D.num_fp16_res, D.low_dtype = 2, torch.bfloat16
    seen = []
    for network in (G.synthesis, D):
        seen.append({})
        for name, block in network.named_children():
            if name != "mapping" and not isinstance(block, stylegan2_discriminator.DiscriminatorEpilogue):
                block.register_forward_hook(lambda _, inputs, __, name=name, of=seen[-1]: of.update({name: inputs[-1]}))
    D(G(torch.randn(2, 6)))
    assert seen[0] == {"b4": torch.float32, "b8": torch.float32, "b16": torch.bfloat16}
    assert seen[1] == {"b8": torch.bfloat16, "b16": torch.bfloat16}


def test_autocast_is_near_float32():
    G, D = make_generator(5, 7), make_discriminator(5, 7)
    z, (c, h) = torch.randn(4, 6), condition(4, 5, 7)
    images = G(z, c, h, noise_mode="const")
    logits = D(images.detach(), c, h)
    with torch.autocast("cpu", torch.bfloat16):
        low = G(z, c, h, noise_mode="const")
        scores = D(images.detach(), c, h)
    assert 0 < (low - images).abs().max() < 0.2 * images.abs().max()
    assert 0 < (scores - logits).abs().max() < 0.2 * logits.abs().max()
    low.float().square().sum().backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_float16_on_cuda_is_near_float32():
    options = {"num_fp16_res": 2, "conv_clamp": 256}
    G, D = make_generator(5, 7, **options).cuda(), make_discriminator(5, 7, **options).cuda()
    z, (c, h) = torch.randn(4, 6).cuda(), (value.cuda() for value in condition(4, 5, 7))
    exact, half = (G(z, c, h, noise_mode="const", force_fp32=force) for force in (True, False))
    assert 0 < (half - exact).abs().max() < 0.02 * exact.abs().max()
    scores, half = (D(exact, c, h, force_fp32=force) for force in (True, False))
    assert 0 < (half - scores).abs().max() < 0.02 * scores.abs().max()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [1e-5, 1, 1e5])
def test_modulated_conv2d_in_float16_does_not_overflow(scale, fused):
    x, weight, styles = torch.randn(2, 64, 4, 4), torch.randn(8, 64, 3, 3), scale * torch.randn(2, 64)
    weight *= torch.logspace(-4, 4, 8)[:, None, None, None]  # each output channel of a size of its own
    exact = modulated_conv2d(x, weight, torch.nn.functional.normalize(styles), padding=1)
    half = modulated_conv2d(x.half(), weight, styles, padding=1, fused=fused)
    assert half.dtype == torch.float16
    assert_near(half.float()[:, 1:], exact[:, 1:], 0.01)


def test_conv_clamp_bounds_every_activation():
    G = make_generator(conv_clamp=0.01, architecture="resnet")
    D = make_discriminator(conv_clamp=0.01)
    for layer in D.modules():
        if isinstance(layer, Conv2dLayer):
            layer.weight.data *= 100  # so that every layer reaches its bound
    seen = {}
    for network in (G, D):
        for name, layer in network.named_modules():
            if isinstance(layer, Conv2dLayer | stylegan2.SynthesisLayer | stylegan2.ToRGBLayer):
                layer.register_forward_hook(
                    lambda _layer, _inputs, y, name=name: seen.update({name: float(y.abs().max())})
                )
    with torch.no_grad():
        G(torch.randn(4, 6))
        D(torch.randn(4, 3, 16, 16))
    bound = {name: 0.01 for name in seen if not name.endswith("skip")}  # which is linear in what it is given
    for name in ("synthesis.b8.conv1", "synthesis.b16.conv1", "b16.conv1", "b8.conv1"):
        bound[name] = 0.01 * 0.5**0.5  # one of two branches, so that their sum keeps the second moment
    assert len(bound) == 6 + 6
    assert {name: seen[name] for name in bound} == pytest.approx(bound)


# Layers


def test_normalize_2nd_moment():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert normalize_2nd_moment(x).tolist() == [pytest.approx([3 / 12.5**0.5, 4 / 12.5**0.5]), [0, 0]]


@pytest.mark.parametrize("activation", ["linear", "lrelu"])
def test_fully_connected_layer_equals_definition(activation):
    layer = FullyConnectedLayer(6, 4, activation=activation, lr_multiplier=0.01, bias_init=3)
    x = torch.randn(5, 6)
    y = x @ (layer.weight * 0.01 / 6**0.5).t() + layer.bias * 0.01
    expected = torch.where(y > 0, y, 0.2 * y) * 2**0.5 if activation == "lrelu" else y
    assert_near(layer(x), expected, 1e-5)
    assert layer.bias.tolist() == [3] * 4
    assert FullyConnectedLayer(6, 4, bias=False)(x).shape == (5, 4)


def test_layers_keep_the_second_moment():
    x = torch.randn(64, 32, 8, 8)
    layers = [Conv2dLayer(32, 32, 3, activation="lrelu"), Conv2dLayer(32, 32, 1), Conv2dLayer(32, 32, 3, down=2)]
    for layer in layers[:2]:
        assert 0.7 < layer(x)[:, :, 1:-1, 1:-1].std() < 1.3
    mapping = [FullyConnectedLayer(32, 32, activation="lrelu", lr_multiplier=0.01) for _ in range(8)]
    assert 0.5 < torch.nn.Sequential(*mapping)(torch.randn(256, 32)).square().mean() < 2


@pytest.mark.parametrize(
    ("num", "group_size", "group"),
    list(zip((8, 6, 7, 1, 6, 4), (4, 4, 4, 4, None, 8), (4, 3, 1, 1, 6, 4), strict=True)),
)
@pytest.mark.parametrize("num_channels", [1, 2])
def test_minibatch_std_equals_definition(num, group_size, group, num_channels):
    x = torch.randn(num, 4, 3, 3, dtype=torch.float64)
    y = MinibatchStdLayer(group_size, num_channels)(x)
    assert y.shape == (num, 4 + num_channels, 3, 3)
    assert torch.equal(y[:, :4], x)
    for row, channel in itertools.product(range(num), range(num_channels)):
        members = x[row % (num // group) :: num // group]  # as many groups as the step between members
        assert len(members) == group
        part = members.unflatten(1, (num_channels, -1))[:, channel]
        expected = (part.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        assert (y[row, 4 + channel] - expected).abs().max() < 1e-10


def test_minibatch_std_lets_the_discriminator_compare_images():
    D = make_discriminator(epilogue_kwargs={"mbstd_group_size": 2})
    images = torch.randn(4, 3, 16, 16)
    logits = D(images)
    changed = images.clone()
    changed[2] = changed[0]
    assert (D(changed)[0] - logits[0]).abs() > 1e-5  # 0 and 2 form a group
    assert (D(changed)[[1, 3]] - logits[[1, 3]]).abs().max() < 1e-5
    alone = make_discriminator(epilogue_kwargs={"mbstd_num_channels": 0})
    assert "b4.mbstd" not in dict(alone.named_modules())
    assert_near(alone(changed)[[0, 1, 3]], alone(images)[[0, 1, 3]], 1e-5)
