"""BigGAN, BigGAN-deep and SAGAN networks: sizes and arrays of the published ones, conditions, and their doors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from training.networks.biggan import WIDTHS, Discriminator, Generator, attention_resolutions
from training.networks.conditional_norm import ConditionalBatchNorm

DATA = Path(__file__).parent / "data"
CONDITIONS = [(0, 0), (5, 0), (0, 7), (5, 7)]  # c_dim, h_dim
MEMBERS = {
    "biggan": {},
    "biggan without hierarchy": {"hier": False},
    "deep": {"deep": True},
    "deep without hierarchy": {"deep": True, "hier": False},
    "sagan": {"shared": False, "hier": False, "init": "xavier"},
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_generator(c_dim=0, h_dim=0, img_resolution=16, img_channels=1, **options):
    options = {"z_dim": 6, "ch": 2, "shared_dim": 3, "shared_dim_feat": 4, "attention": (16,)} | options
    return Generator(c_dim=c_dim, img_resolution=img_resolution, img_channels=img_channels, h_dim=h_dim, **options)


def make_discriminator(c_dim=0, h_dim=0, img_resolution=16, img_channels=1, **options):
    options = {"ch": 2, "attention": (8,)} | options
    return Discriminator(c_dim, img_resolution, img_channels, h_dim=h_dim, **options)


def condition(num, c_dim, h_dim):
    c = torch.nn.functional.one_hot(torch.arange(num) % c_dim, c_dim).float() if c_dim else None
    return c, torch.nn.functional.normalize(torch.randn(num, h_dim), dim=1) if h_dim else None


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


# The published networks

IMAGENET, INSTANCE, BOTH = (
    {"c_dim": 1000},
    {"c_dim": 0, "h_dim": 2048, "label_rows": 1000},
    {"c_dim": 1000, "h_dim": 2048},
)
PUBLISHED = [  # resolution, ch, z_dim, condition, attention, other options of G; z_dim in use, parameters of G and D
    (128, 96, 120, IMAGENET, (64,), {}, 120, 70_433_988, 87_982_370),
    (128, 64, 120, IMAGENET, (64,), {}, 120, 31_978_628, 39_448_258),
    (64, 64, 120, IMAGENET, (32,), {}, 120, 31_969_540, 20_571_842),
    (256, 96, 140, IMAGENET, (64,), {}, 140, 82_235_844, 99_225_890),
    (256, 64, 140, IMAGENET, (64,), {}, 140, 37_325_444, 44_445_890),
    (32, 64, 128, {"c_dim": 10}, (), {"hier": False, "shared": False}, 128, 4_304_387, 4_207_361),  # CIFAR
    (128, 128, 128, IMAGENET, (64,), {"deep": True}, 128, 50_244_484, 34_590_210),
    (256, 128, 128, IMAGENET, (64,), {"deep": True}, 128, 55_736_708, 38_247_426),
    (64, 64, 120, INSTANCE, (32,), {}, 120, 36_655_876, 21_646_018),
    (128, 96, 120, INSTANCE, (64,), {}, 120, 77_160_132, 89_593_634),
    (256, 96, 120, INSTANCE, (64,), {}, 119, 90_014_340, 100_837_154),
    (256, 64, 120, INSTANCE, (64,), {}, 119, 42_860_804, 45_520_066),
    (64, 64, 120, BOTH, (32,), {}, 120, 37_868_292, 21_108_930),
    (128, 96, 120, BOTH, (64,), {}, 120, 79_052_484, 88_788_002),
    (256, 96, 120, BOTH, (64,), {}, 119, 92_299_908, 100_031_522),
    (128, 48, 120, INSTANCE, (64,), {}, 120, 22_271_076, 23_189_330),  # COCO-Stuff
    (256, 48, 120, INSTANCE, (64,), {}, 119, 25_861_956, 26_000_786),
]


@pytest.mark.parametrize(
    ("resolution", "ch", "z_dim", "cond", "attention", "options", "z_used", "in_g", "in_d"),
    PUBLISHED,
    ids=[f"{row[0]}-ch{row[1]}-{'-'.join([*row[3], *row[5]])}" for row in PUBLISHED],
)
def test_parameters_are_as_many_as_published(resolution, ch, z_dim, cond, attention, options, z_used, in_g, in_d):
    common = {
        "img_resolution": resolution,
        "img_channels": 3,
        "ch": ch,
        "attention": attention,
        "init": "normal",
    } | cond
    with torch.device("meta"):  # shapes without numbers
        G = Generator(z_dim=z_dim, **common, **options)
        D = Discriminator(**common, deep=options.get("deep", False))
    assert (G.z_dim, count(G), count(D)) == (z_used, in_g, in_d)


@pytest.fixture(scope="module")
def published():
    """Arrays of a published network, cut to fit the repository: see the metadata."""
    arrays = {}
    for path in sorted(DATA.glob("biggan_instance_64_*.safetensors")):
        with safe_open(path, "pt") as file:
            arrays |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            config = json.loads(file.metadata()["config"])
    for key in [key for key in arrays if key.startswith("int16.")]:
        name = key.removeprefix("int16.")
        arrays[name] = arrays.pop(key) * arrays.pop(f"scale.{name}")
    return config, arrays


def test_published_images_and_logits(published):
    o, arrays = published
    common = {"c_dim": 0, "img_resolution": o["resolution"], "img_channels": 3, "h_dim": o["h_dim"], "ch": o["ch"]}
    common |= {"attention": (int(o["attention"]),)}
    shared = {"shared_dim": o["shared_dim"], "shared_dim_feat": o["shared_dim_feat"]}
    G = Generator(z_dim=o["dim_z"], hier=o["hier"], label_rows=o["n_classes"], **shared, **common).eval()
    D = Discriminator(**common).eval()
    for prefix, network in (("G.", G), ("D.", D)):
        state = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        network.load_state_dict(state, strict=True)
    with torch.no_grad():
        images = G(arrays["in.z"], None, arrays["in.h"])
        logits = D(arrays["in.real"], None, arrays["in.h"])
    assert images.shape == arrays["out.img"].shape and logits.shape == arrays["out.logits"].shape
    assert (images - arrays["out.img"]).abs().max() < 1e-3
    assert (logits - arrays["out.logits"]).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["biggan_class_instance_64", "biggan_instance_128"])
def test_published_images_and_logits_of_other_networks(name):
    """Narrow ones, with random weights and statistics, without attention."""
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        o = json.loads(file.metadata()["config"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    c_dim, rows = (o["n_classes"], {}) if o["class_cond"] else (0, {"label_rows": o["n_classes"]})
    common = {"c_dim": c_dim, "img_resolution": o["resolution"], "img_channels": 3, "h_dim": o["h_dim"], "ch": o["ch"]}
    shared = {"shared_dim": o["shared_dim"], "shared_dim_feat": o["shared_dim_feat"]}
    G = Generator(z_dim=o["dim_z"], attention=(), **rows, **shared, **common).eval()
    D = Discriminator(attention=(), **common).eval()
    for prefix, network in (("G.", G), ("D.", D)):
        state = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        network.load_state_dict(state, strict=True)
    c = torch.nn.functional.one_hot(arrays["in.y"], c_dim).float() if c_dim else None
    with torch.no_grad():
        images, logits = G(arrays["in.z"], c, arrays["in.h"]), D(arrays["in.real"], c, arrays["in.h"])
    torch.testing.assert_close(images, arrays["out.img"], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, arrays["out.logits"], rtol=1e-5, atol=1e-5)
    assert images.std() > 0.1 and logits.std() > 0.1


def test_names_of_the_parts_that_the_stored_network_lacks():
    """Classes in both networks, and BigGAN-deep: names in the published code."""
    attention = {"attention": (32,)}
    G, D = make_generator(5, 7, 64, deep=True, **attention), make_discriminator(5, 7, 64, deep=True, **attention)
    expected = {
        "G": "shared.weight shared_feat.u0 blocks.0.0.conv4.sv0 blocks.1.1.bn4.gain.weight blocks.2.2.gamma",
        "D": "input_conv.weight embed.u0 linear_feat.weight blocks.0.0.conv_sc.bias blocks.0.2.theta.u0",
    }
    for network, names in zip((G, D), expected.values(), strict=True):
        assert set(names.split()) <= set(network.state_dict())
    assert D.embed.u0.shape == (1, 5)
    assert D.blocks[1][1].conv_sc is None  # as many channels out as in


# Conditions


@pytest.mark.parametrize(("c_dim", "h_dim"), CONDITIONS)
@pytest.mark.parametrize("member", MEMBERS)
def test_every_condition_has_shapes_and_gradients(member, c_dim, h_dim):
    options = MEMBERS[member] | {"ch": 4}  # with fewer channels a block may have no ReLU that lets anything through
    G = make_generator(c_dim, h_dim, **options)
    D = make_discriminator(c_dim, h_dim, ch=4, deep=options.get("deep", False))
    for network in (G, D):
        assert (network.c_dim, network.h_dim) == (c_dim, h_dim)
        assert (network.img_resolution, network.img_channels) == (16, 1)
    assert (G.z_dim, G.w_dim, G.num_ws) == (6, 0, 0)
    for module in [*G.modules(), *D.modules()]:
        if hasattr(module, "gamma"):
            module.gamma.data.fill_(0.5)

    c, h = condition(5, c_dim, h_dim)
    images = G(torch.randn(5, 6), c, h)
    assert images.shape == (5, 1, 16, 16) and images.dtype == torch.float32
    assert images.abs().max() <= 1
    logits = D(images, c, h)
    assert logits.shape == (5, 1) and logits.dtype == torch.float32
    logits.square().sum().backward()
    for name, parameter in [*G.named_parameters(), *D.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("member", MEMBERS)
def test_each_condition_and_each_chunk_of_z_changes_the_image(member):
    G, D = make_generator(5, 7, **MEMBERS[member]).eval(), make_discriminator(5, 7).eval()
    z, (c, h) = torch.randn(2, 6), condition(2, 5, 7)
    images = G(z, c, h)
    for other in ({"c": c.flip(0), "h": h}, {"c": c, "h": h.flip(0)}):
        assert (G(z, **other) - images).abs().mean() > 1e-3
        assert (D(images, **other) - D(images, c, h)).abs().mean() > 1e-3
    for column in range(6):
        moved = z.clone()
        moved[:, column] += 1
        assert (G(moved, c, h) - images).abs().mean() > 1e-4, column


def test_rows_of_classes_start_as_plain_batch_norm():
    G = make_generator(c_dim=5, **MEMBERS["sagan"])
    norms = [module for module in G.modules() if isinstance(module, ConditionalBatchNorm)]
    assert len(norms) == 4
    z, (c, _) = torch.randn(2, 6), condition(2, 5, 0)
    G.eval()
    assert torch.equal(G(z, c), G(z, c.flip(0)))
    norms[0].gain.weight.data[1] += 1
    assert not torch.equal(G(z, c)[1], G(z, c.flip(0))[1])


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(("c_dim", "h_dim"), CONDITIONS)
def test_absent_condition_is_none_or_of_width_zero(member, c_dim, h_dim):
    G, D = make_generator(c_dim, h_dim, **MEMBERS[member]).eval(), make_discriminator(c_dim, h_dim).eval()
    c, h = condition(2, c_dim, h_dim)
    empty = [value if value is not None else torch.zeros(2, 0) for value in (c, h)]
    z = torch.randn(2, 6)
    assert torch.equal(G(z, c, h), G(z, *empty))
    assert torch.equal(D(G(z, c, h), c, h), D(G(z, c, h), *empty))


@pytest.mark.parametrize("member", MEMBERS)
def test_no_images_at_all(member):
    G, D = make_generator(5, 7, **MEMBERS[member]).eval(), make_discriminator(5, 7).eval()
    c, h = torch.zeros(0, 5), torch.zeros(0, 7)
    images = G(torch.zeros(0, 6), c, h)
    assert images.shape == (0, 1, 16, 16)
    assert D(images, c, h).shape == (0, 1)


def test_without_condition_it_is_a_class_conditional_network_whose_label_is_zero():
    """What the published unconditional baselines are; they carry 1,000 rows of which one is used."""
    G, D = make_generator(label_rows=5).eval(), make_discriminator(label_rows=5).eval()
    labelled_g, labelled_d = make_generator(c_dim=5).eval(), make_discriminator(c_dim=5).eval()
    labelled_g.load_state_dict(G.state_dict(), strict=True)
    labelled_d.load_state_dict(D.state_dict(), strict=True)
    z, first = torch.randn(2, 6), torch.eye(5)[[0, 0]]
    images = G(z)
    torch.testing.assert_close(images, labelled_g(z, first))
    torch.testing.assert_close(D(images), labelled_d(images, first))


def test_logit_is_a_projection():
    """linear(x) + <[class, instance], x>, half of x's width each."""
    D = make_discriminator(5, 7).eval()
    img, (c, h) = torch.randn(3, 1, 16, 16), condition(3, 5, 7)
    x = D.features(img)
    assert x.shape == (3, 8)
    label, instance = D.embed(c), D.linear_feat(h)
    assert label.shape == instance.shape == (3, 4)
    expected = D.linear(x)[:, 0] + (label * x[:, :4]).sum(1) + (instance * x[:, 4:]).sum(1)
    torch.testing.assert_close(D(img, c, h)[:, 0], expected)
    torch.testing.assert_close(D.embed(torch.eye(5)), D.embed.weight / torch.linalg.svdvals(D.embed.weight)[0])


# Truncation


def test_truncation_is_a_smaller_z():
    G = make_generator(5, 7).eval()
    z, (c, h) = torch.randn(2, 6), condition(2, 5, 7)
    assert torch.equal(G(z, c, h, truncation_psi=0.5), G(z / 2, c, h))
    assert torch.equal(G(z, c, h, truncation_psi=0), G(torch.zeros(2, 6), c, h))
    one_chunk = torch.cat([z[:, :2] / 2, z[:, 2:]], dim=1)  # three chunks: input and two stages
    assert torch.equal(G(z, c, h, truncation_psi=0.5, truncation_cutoff=1), G(one_chunk, c, h))
    for cutoff in (3, 99):
        images = G(z, c, h, truncation_psi=0.5, truncation_cutoff=cutoff)
        assert torch.equal(images, G(z / 2, c, h))
    assert torch.equal(G(z, c, h, truncation_psi=0.5, truncation_cutoff=0), G(z, c, h))


def test_whole_z_is_one_chunk():
    G, z = make_generator(deep=True).eval(), torch.randn(2, 6)
    assert torch.equal(G(z, truncation_psi=0.5, truncation_cutoff=1), G(z / 2))


def test_noise_mode_makes_no_difference():
    G, z = make_generator().eval(), torch.randn(2, 6)
    assert torch.equal(G(z, noise_mode="random"), G(z, noise_mode="none"))
    with pytest.raises(ValueError, match="noise_mode: 'constant' is not one of random, const, none"):
        G(z, noise_mode="constant")


# Structure


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("resolution", WIDTHS)
def test_every_resolution_of_the_table(resolution, deep):
    G = make_generator(5, 7, resolution, 3, z_dim=20, ch=1, deep=deep, attention=()).eval()
    D = make_discriminator(5, 7, resolution, 3, ch=1, deep=deep, attention=()).eval()
    c, h = condition(2, 5, 7)
    with torch.no_grad():
        images = G(torch.randn(2, G.z_dim), c, h)
        assert images.shape == (2, 3, resolution, resolution)
        assert D(images, c, h).shape == (2, 1)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("resolution", WIDTHS)
def test_attention_at_every_resolution_there_is(resolution, deep):
    g_there, d_there = attention_resolutions(resolution)
    with torch.device("meta"):
        G = make_generator(5, 7, resolution, 3, z_dim=20, deep=deep, attention=g_there, init="normal")
        D = make_discriminator(5, 7, resolution, 3, deep=deep, attention=d_there, init="normal")
    layers = [sum(hasattr(module, "gamma") for module in network.modules()) for network in (G, D)]
    assert layers == [len(g_there), len(d_there)]


def test_attention_is_where_it_was_asked_for():
    G, D = make_generator(attention=(8,)), make_discriminator(attention=(4,))
    seen = []
    for network in (G, D):
        for module in network.modules():
            if hasattr(module, "gamma"):
                module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-1]))
    D(G(torch.randn(2, 6)))
    assert seen == [8, 4]


@pytest.mark.parametrize("deep", [False, True])
def test_force_fp32_switches_autocast_off(deep):
    G, D = make_generator(5, 7, deep=deep).eval(), make_discriminator(5, 7, deep=deep).eval()
    z, (c, h) = torch.randn(2, 6), condition(2, 5, 7)
    images, logits = G(z, c, h), D(torch.ones(2, 1, 16, 16), c, h)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(G(z, c, h, force_fp32=True), images)
        assert torch.equal(D(torch.ones(2, 1, 16, 16), c, h, force_fp32=True), logits)
        low, low_logits = G(z, c, h), D(torch.ones(2, 1, 16, 16), c, h)
    assert low.dtype == low_logits.dtype == torch.float32
    assert not torch.equal(low, images)
    torch.testing.assert_close(low, images, atol=0.05, rtol=0)
    torch.testing.assert_close(low_logits, logits, atol=0.05, rtol=0.05)


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
    for call in (lambda **cond: G(torch.zeros(2, 6), **cond), lambda **cond: D(torch.zeros(2, 1, 16, 16), **cond)):
        with pytest.raises(ValueError, match=message):
            call(**arguments)


@pytest.mark.parametrize(("name", "what"), [("c", "class labels"), ("h", "instance features")])
def test_condition_for_an_unconditional_network_is_refused(name, what):
    G, D = make_generator(), make_discriminator()
    for call in (lambda **cond: G(torch.zeros(2, 6), **cond), lambda **cond: D(torch.zeros(2, 1, 16, 16), **cond)):
        with pytest.raises(ValueError, match=rf"{name}: expected {what} \[2, 0\], or None: .* got \[2, 4\]"):
            call(**{name: torch.zeros(2, 4)})


def test_wrong_inputs_are_refused():
    G, D = make_generator(), make_discriminator()
    with pytest.raises(ValueError, match=r"z: expected noise \[N, 6\]; got \[2, 5\]"):
        G(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"img: .* \[N, 1, 16, 16\] .* got torch.float32 \[2, 1, 8, 8\]"):
        D(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"img: expected floating-point .* got torch.uint8"):
        D(torch.zeros(2, 1, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (make_generator, {"img_resolution": 24}, "img_resolution: 24 has no row; expected one of 8, 16, 32, 64"),
        (make_generator, {"attention": (32,)}, "attention: 32 is no resolution of this network; it has 8, 16"),
        (make_generator, {"z_dim": 2}, "z_dim: 2 leaves nothing for 3 chunks"),
        (make_generator, {"z_dim": 0, "hier": False}, "z_dim: 0 leaves nothing for 1 chunks"),
        (make_generator, {"shared": False}, "hier: z can only join a shared embedding"),
        (make_generator, {"ch": 0}, "ch: 0 leaves no channels"),
        (make_generator, {"init": "zero"}, "init: 'zero' is not one of ortho, xavier, normal"),
        (make_generator, {"c_dim": 5, "label_rows": 5}, "label_rows: 5 with c_dim 5"),
        (make_discriminator, {"img_resolution": 24}, "img_resolution: 24 has no row"),
        (make_discriminator, {"attention": (16,)}, "attention: 16 is no resolution of this network; it has 8, 4"),
        (make_discriminator, {"ch": 0}, "ch: 0 leaves no channels"),
    ],
)
def test_impossible_structure_is_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize(("make", "name"), [(make_generator, "channels"), (make_discriminator, "hier")])
def test_unknown_option_is_refused(make, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        make(**{name: ()})
