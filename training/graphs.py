"""Gradients as one CUDA graph: the host launches a forward and backward pass once and replays it afterwards."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Work = Callable[[Sequence[Tensor]], Tensor]  # static inputs -> a loss or any other tensor; calls backward() itself
WARMUPS = 3  # passes before the recording: cuDNN chooses its algorithms, torch fills its caches


class Recorded:
    """What a piece of work does to the gradients of parameters, recorded on CUDA, done anew on other devices.

    The work has to be the same kernels every time. Shapes are those of the first inputs; whatever it reads beside them
    and the parameters is read where it lay then; what it decides on the host (an `if`, a Python random number) is
    decided once; what it assigns in Python happens once. torch's random numbers on the GPU are drawn afresh, the same
    ones as without a recording from the same seed.

    Args:
        work: computes a loss from inputs and calls its `backward()`, any number of times.
        inputs: an example.
        parameters: whose gradients it makes, all of them every time.
    """

    def __init__(self, work: Work, inputs: Sequence[Tensor], parameters: Sequence[torch.nn.Parameter]) -> None:
        self.work, self.parameters = work, [p for p in parameters if p.requires_grad]
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph: torch.cuda.CUDAGraph | None = None
        if self.inputs[0].is_cuda:
            self._record()

    def _record(self) -> None:
        # Warm up beside the default stream, as a recording wants it; random numbers and gradients leave no trace.
        state = torch.cuda.get_rng_state()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUPS):
                self._forget()
                self.work(self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        # The first backward of the recording finds no gradient, so it writes where later ones add.
        self._forget()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self.work(self.inputs)
        self.gradients = [p.grad for p in self.parameters]
        torch.cuda.set_rng_state(state)

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """Leave the gradients of the work for these inputs in the parameters' `grad`, in place of what was there.

        Returns:
            what the work returned, to be read before the next call.
        """
        for static, tensor in zip(self.inputs, inputs, strict=True):
            static.copy_(tensor)
        if self.graph is None:
            self._forget()
            return self.work(self.inputs)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient  # another recording may have put its own there
        return self.output
