"""Layers of the BigGAN family: spectral normalisation, batch normalisation and its modes, attention."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from training.condition import Condition
from training.networks.attention import SelfAttention
from training.networks.biggan import Generator
from training.networks.conditional_norm import BatchNorm, ConditionalBatchNorm, batch_norm_mode, has_batch_norm
from training.networks.residual import DBlock, DeepDBlock, DeepGBlock, GBlock
from training.networks.spectral_norm import Embedding, SNConv2d, SNEmbedding, SNLinear, initialise, power_iteration


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def ready(layer, how="normal"):
    initialise(layer, how)
    return layer


# Spectral normalisation


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (lambda: SNConv2d(3, 5, kernel_size=3), torch.randn(2, 3, 6, 6)),
        (lambda: SNConv2d(3, 5, kernel_size=1, bias=False), torch.randn(2, 3, 6, 6)),
        (lambda: SNLinear(4, 6), torch.randn(2, 4)),
        (lambda: SNEmbedding(4, 6), torch.eye(4)[:2]),
    ],
)
def test_weight_comes_to_have_a_largest_singular_value_of_1(layer, inputs):
    layer = ready(layer())
    for _ in range(100):
        layer(inputs)
    sigma = torch.linalg.svdvals(layer.weight.flatten(1))[0]
    torch.testing.assert_close(layer.sv0, sigma.reshape(1))
    torch.testing.assert_close(layer.normalised_weight(), layer.weight / sigma)
    bias = getattr(layer, "bias", None)
    with_weight = {
        SNConv2d: lambda w: F.conv2d(inputs, w, bias, padding=w.shape[-1] // 2),
        SNLinear: lambda w: F.linear(inputs, w, bias),
        SNEmbedding: lambda w: w[:2],
    }
    torch.testing.assert_close(layer(inputs), with_weight[type(layer)](layer.weight / sigma))


def test_training_goes_one_iteration_a_pass_and_evaluation_stores_nothing():
    layer, x = ready(SNLinear(7, 5)), torch.randn(2, 7)
    u = layer.u0.clone()
    layer(x)
    expected_sigma, expected_u = power_iteration(layer.weight.detach(), u[0], layer.eps)
    assert torch.equal(layer.u0[0], expected_u)
    assert torch.equal(layer.sv0[0], expected_sigma)
    assert layer.u0.norm().item() == pytest.approx(1)

    layer.eval()
    state = copy.deepcopy(layer.state_dict())
    first = layer(x)
    assert torch.equal(layer(x), first)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    again = ready(SNLinear(7, 5)).eval()
    again.load_state_dict(state)
    assert torch.equal(again(x), first)


def test_power_iteration_by_hand():
    sigma, u = power_iteration(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 1.0]), eps=1e-12)
    # v ~ (3, 1), u ~ (9, 1), sigma = u^T W v
    torch.testing.assert_close(u, torch.tensor([9.0, 1.0]) / math.sqrt(82))
    assert sigma.item() == pytest.approx(82 / math.sqrt(82 * 10))


def test_gradient_goes_through_sigma():
    """d/dW of a / sigma(W) lacks the part along u v^T (arXiv 1802.05957): growing W as a whole does nothing."""
    layer, x = ready(SNLinear(7, 5, bias=False)), torch.randn(2, 7)
    for _ in range(100):
        layer(x)
    layer(x).square().sum().backward()
    assert (layer.weight.grad * layer.weight).sum().abs() < 1e-5 * layer.weight.grad.norm() * layer.weight.norm()


def test_a_weight_of_zero_gives_zeros():
    layer = SNLinear(7, 5)
    torch.nn.init.zeros_(layer.weight)
    assert torch.equal(layer(torch.randn(2, 7)), torch.zeros(2, 5))


def test_two_passes_before_one_backward():
    """The state of the second pass does not spoil the graph of the first."""
    layer, x = ready(SNLinear(7, 5)), torch.randn(2, 7)
    first = layer(x).sum()
    second = layer(x).sum()
    (first + second).backward()
    assert layer.weight.grad.isfinite().all()


def test_initialisations():
    layer = ready(SNConv2d(4, 6, kernel_size=3), "ortho")
    rows = layer.weight.flatten(1)
    torch.testing.assert_close(rows @ rows.t(), torch.eye(6))
    assert torch.equal(layer.bias, torch.zeros(6))
    assert ready(Embedding(100, 100), "normal").weight.std().item() == pytest.approx(0.02, rel=0.05)
    bound = math.sqrt(6 / (60 + 30))
    xavier = ready(SNLinear(60, 30), "xavier").weight.abs().max().item()
    assert 0.95 * bound < xavier <= bound


def test_a_mixture_of_labels_is_a_mixture_of_rows():
    table = ready(Embedding(3, 4))
    assert torch.equal(table(torch.eye(3)), table.weight)
    torch.testing.assert_close(table(torch.tensor([[0.5, 0.5, 0.0]]))[0], table.weight[:2].mean(0))


# Batch normalisation


def test_batch_norm_equals_its_definition():
    norm = BatchNorm(3)
    norm.gain.data, norm.bias.data = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, -1.0])
    x = torch.randn(4, 3, 5, 5) * 2 + 1
    mean, var = x.mean(dim=[0, 2, 3]), x.var(dim=[0, 2, 3], unbiased=False)

    def by(mean, var):
        normal = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return normal * norm.gain[:, None, None] + norm.bias[:, None, None]

    torch.testing.assert_close(norm(x), by(mean, var))
    torch.testing.assert_close(norm.stored_mean, 0.1 * mean)
    torch.testing.assert_close(norm.stored_var, 0.9 + 0.1 * var * 100 / 99)
    torch.testing.assert_close(norm.eval()(x), by(norm.stored_mean, norm.stored_var))


def test_conditional_gain_starts_from_1():
    norm = ConditionalBatchNorm(3, ready(Embedding(2, 3)), ready(Embedding(2, 3))).eval()
    x, y = torch.randn(2, 3, 4, 4), torch.eye(2)
    gain, bias = 1 + norm.gain.weight[:, :, None, None], norm.bias.weight[:, :, None, None]
    torch.testing.assert_close(norm(x, y), x / math.sqrt(1 + 1e-5) * gain + bias)


@pytest.fixture
def generator():
    """In eval mode, with running statistics that are those of no batch."""
    G = Generator(6, 0, 8, 1, h_dim=4, ch=2, shared_dim_feat=3)
    for _ in range(3):
        G(*rows(8))
    return G.eval()


def rows(num):
    return torch.randn(num, 6), None, F.normalize(torch.randn(num, 4), dim=1)


def passes(count, num=8):
    return [(torch.randn(num, 6), Condition(torch.zeros(num, 0), torch.randn(num, 4))) for _ in range(count)]


def test_standing_statistics_are_the_means_over_the_passes(generator):
    x = rows(5)
    running = generator(*x)
    state = copy.deepcopy(generator.state_dict())
    batches = passes(4)

    first, seen = generator.blocks[0][0].bn1, []
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with batch_norm_mode(generator, "standing", batches):
        handle.remove()
        assert len(seen) == 4
        torch.testing.assert_close(first.stored_mean, torch.stack([s.mean(dim=[0, 2, 3]) for s in seen]).mean(0))
        torch.testing.assert_close(first.stored_var, torch.stack([s.var(dim=[0, 2, 3]) for s in seen]).mean(0))
        standing = generator(*x)
        together = torch.cat([generator(x[0][i : i + 1], None, x[2][i : i + 1]) for i in range(5)])
        torch.testing.assert_close(standing, together)  # an image does not depend on its neighbours
        u = {name: value for name, value in generator.state_dict().items() if name.endswith("u0")}
        assert all(torch.equal(value, state[name]) for name, value in u.items())
    with batch_norm_mode(generator, "standing", batches):
        assert torch.equal(generator(*x), standing)
    assert not torch.allclose(standing, running)
    assert torch.equal(generator(*x), running)
    assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())


def test_batch_statistics_are_those_of_the_images_at_hand(generator):
    x = rows(5)
    state = copy.deepcopy(generator.state_dict())
    training = copy.deepcopy(generator)
    for module in training.modules():
        if isinstance(module, BatchNorm | ConditionalBatchNorm):
            module.training = True
    with batch_norm_mode(generator, "batch"):
        images = generator(*x)
        torch.testing.assert_close(images, training(*x))
        torch.testing.assert_close(generator(*x), images)
        alone = generator(x[0][:1], None, x[2][:1])
        assert not torch.allclose(alone, images[:1])
    assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())
    with batch_norm_mode(generator, "running"):
        torch.testing.assert_close(generator(x[0][:1], None, x[2][:1]), generator(*x)[:1])


def test_an_error_leaves_the_generator_as_it_was(generator):
    x = rows(5)
    before = generator(*x)
    with pytest.raises(RuntimeError, match="inside"), batch_norm_mode(generator, "standing", passes(1)):
        raise RuntimeError("inside")
    broken = [*passes(2), (torch.zeros(2, 5), Condition.empty(2))]
    with pytest.raises(ValueError, match="z: expected noise"), batch_norm_mode(generator, "standing", broken):
        pass
    assert torch.equal(generator(*x), before)


def test_impossible_modes_are_refused(generator):
    for mode, given, message in (
        ("stored", [], "mode: 'stored' is not one of running, standing, batch"),
        ("standing", [], "passes: 0 given with mode 'standing'"),
        ("batch", passes(1), "passes: 1 given with mode 'batch'"),
    ):
        with pytest.raises(ValueError, match=message), batch_norm_mode(generator, mode, given):
            pass
    with pytest.raises(ValueError, match="expected one in eval mode"), batch_norm_mode(generator.train(), "batch"):
        pass


def test_which_networks_have_batch_norm(generator):
    assert has_batch_norm(generator)
    assert not has_batch_norm(DBlock(1, 2, first=True, down=True, eps=1e-6))


# Attention


def test_attention_starts_as_the_identity_and_is_the_formula():
    layer, x = ready(SelfAttention(16)).eval(), torch.randn(2, 16, 6, 6)
    assert torch.equal(layer(x), x)
    layer.gamma.data.fill_(0.5)
    query, key, value = layer.theta(x), F.max_pool2d(layer.phi(x), 2), F.max_pool2d(layer.g(x), 2)
    assert (query.shape[1], value.shape[1]) == (2, 8)
    expected = x.clone()
    for n, row, column in ((0, 0, 0), (1, 2, 5)):
        score = torch.einsum("c,chw->hw", query[n, :, row, column], key[n]).flatten().softmax(0)
        mixed = value[n].flatten(1) @ score
        out = F.conv2d(mixed[None, :, None, None], layer.o.normalised_weight())[0, :, 0, 0]
        expected[n, :, row, column] += 0.5 * out
        torch.testing.assert_close(layer(x)[n, :, row, column], expected[n, :, row, column])


# Residual blocks


def norm(channels):
    return ConditionalBatchNorm(channels, ready(Embedding(3, channels)), ready(Embedding(3, channels)))


def test_blocks_shapes_and_skips():
    """With the last convolution at 0, what is left is the skip."""
    x, y = torch.randn(2, 8, 4, 4), torch.eye(3)[:2]
    up, pooled = F.interpolate(x, scale_factor=2), F.avg_pool2d(x, 2)
    plain, deep = ready(GBlock(8, 4, norm, up=True, eps=1e-6)), ready(DeepGBlock(8, 4, norm, up=True, eps=1e-6))
    first = ready(DBlock(8, 6, first=True, down=True, eps=1e-6))
    later = ready(DBlock(8, 8, first=False, down=False, eps=1e-6))
    deep_d = ready(DeepDBlock(8, 12, down=True, eps=1e-6))
    for block, last in ((plain, "conv2"), (deep, "conv4"), (first, "conv2"), (later, "conv2"), (deep_d, "conv4")):
        torch.nn.init.zeros_(getattr(block, last).weight)
        block.eval()
    torch.testing.assert_close(plain(x, y), plain.conv_sc(up))
    torch.testing.assert_close(deep(x, y), up[:, :4])
    torch.testing.assert_close(first(x), F.avg_pool2d(first.conv_sc(x), 2))
    torch.testing.assert_close(later(x), x)
    torch.testing.assert_close(deep_d(x), torch.cat([pooled, deep_d.conv_sc(pooled)], dim=1))


def test_deep_blocks_equal_their_figures():
    """BigGAN, figures 16b and 16c, with conditions and convolutions in the order drawn."""
    x, y = torch.randn(2, 8, 4, 4), torch.eye(3)[:2]
    g, d = ready(DeepGBlock(8, 4, norm, up=True, eps=1e-6)).eval(), ready(DeepDBlock(8, 12, down=True, eps=1e-6)).eval()
    for block in (g, d):
        for module in block.modules():
            if isinstance(module, SNConv2d):
                torch.nn.init.normal_(module.weight)
                torch.nn.init.normal_(module.bias)  # so that the order of pooling and ReLU shows
    inner = F.interpolate(F.relu(g.bn2(g.conv1(F.relu(g.bn1(x, y))), y)), scale_factor=2)
    inner = g.conv4(F.relu(g.bn4(g.conv3(F.relu(g.bn3(g.conv2(inner), y))), y)))
    torch.testing.assert_close(g(x, y), inner + F.interpolate(x, scale_factor=2)[:, :4])
    inner = F.avg_pool2d(F.relu(d.conv3(F.relu(d.conv2(F.relu(d.conv1(F.relu(x))))))), 2)
    pooled = F.avg_pool2d(x, 2)
    torch.testing.assert_close(d(x), d.conv4(inner) + torch.cat([pooled, d.conv_sc(pooled)], dim=1))


def test_only_the_first_block_sees_what_is_below_zero():
    """Without skip, two inputs that differ below zero alone are the same to a block that starts with a ReLU."""
    x = torch.randn(1, 4, 4, 4)
    for block, differs in (
        (DBlock(4, 4, first=True, down=False, eps=1e-6), True),
        (DBlock(4, 4, first=False, down=False, eps=1e-6), False),
        (DeepDBlock(4, 4, down=False, eps=1e-6), False),
    ):
        ready(block, "ortho").eval()
        branches = [block(value) - value for value in (x, x.clamp_min(0))]
        assert torch.allclose(*branches, atol=1e-5) != differs


def test_a_deep_block_can_not_lose_channels():
    with pytest.raises(ValueError, match="out_channels: 4 is less than in_channels, 8"):
        DeepDBlock(8, 4, down=True, eps=1e-6)
