import pytest
import torch

from training.graphs import Recorded


def make_work(device):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1).to(device)
    frozen = torch.nn.Parameter(torch.ones(1, device=device), requires_grad=False)

    def work(inputs):
        x, y = inputs
        losses = [(layer(x + 0.1 * torch.randn_like(x)) - y).square().mean(), layer(x).mean()]
        for loss in losses:  # gradients add up
            loss.backward()
        return losses[0].detach()

    return layer, work, [*layer.parameters(), frozen]


def check(device):
    layer, work, parameters = make_work(device)
    example = [torch.zeros(5, 3, device=device), torch.zeros(5, 1, device=device)]
    layer.weight.grad = torch.full_like(layer.weight, 7.0)  # of another phase
    record = Recorded(work, example, parameters)
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = [torch.randn(5, 3, device=device), torch.randn(5, 1, device=device)]
        expected = work_once(work, layer, inputs, seed)
        layer.zero_grad()
        torch.manual_seed(seed)
        loss = record(inputs)
        assert torch.allclose(loss, expected[0])
        for parameter, gradient in zip(layer.parameters(), expected[1:], strict=True):
            assert torch.allclose(parameter.grad, gradient)
            with torch.no_grad():
                parameter -= 0.1 * parameter.grad  # read where it lies, not as it was
    assert all(torch.equal(tensor, torch.zeros_like(tensor)) for tensor in example)


def work_once(work, layer, inputs, seed):
    layer.zero_grad()
    torch.manual_seed(seed)
    loss = work(inputs)
    return [loss, *(parameter.grad.clone() for parameter in layer.parameters())]


def test_gradients_are_those_without_a_recording():
    check(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gradients_of_a_cuda_graph_are_those_without_one():
    check(torch.device("cuda"))
