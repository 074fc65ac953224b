"""Times a published checkout on the conditions of benchmarks/step.py and benchmarks/generate.py.

    PYTHONPATH=DIR python benchmarks/peer/peer.py '{"measure": "step", ...}'

A program of its own, since the checkout's packages have the names of ours; started by benchmarks/step.py. The layout
is that of stylegan2-ada-pytorch: training/networks.py has Generator and Discriminator, training/loss.py has
StyleGAN2Loss; either may take instance features h. Prints one line of JSON, the last one.
"""

import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from clocks import least, peak_mib, reset_peak

from training.loss import StyleGAN2Loss
from training.networks import Discriminator, Generator


class Peer:
    """Their networks, loss and optimisers, of the sizes that `spec` says."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.device = spec, torch.device(spec["device"])
        # A decorator may stand before the constructor; what it decorates is its base.
        self.takes_h = any("h_dim" in inspect.signature(base.__init__).parameters for base in Generator.__mro__[:-1])
        if spec["h_dim"] > 0 and not self.takes_h:
            raise SystemExit("its networks take no instance features; use --cond=none")
        shape = {"c_dim": 0, "img_resolution": spec["resolution"], "img_channels": 3}
        shape |= {"h_dim": spec["h_dim"]} if self.takes_h else {}
        sizes = {name: spec[name] for name in ("channel_base", "channel_max", "num_fp16_res", "conv_clamp")}
        mapping = {"num_layers": spec["map_layers"]}
        torch.manual_seed(0)
        self.G = Generator(
            z_dim=spec["z_dim"], w_dim=spec["w_dim"], mapping_kwargs=mapping, synthesis_kwargs=sizes, **shape
        )
        self.D = Discriminator(
            mapping_kwargs=mapping, epilogue_kwargs={"mbstd_group_size": spec["mbstd_group"]}, **sizes, **shape
        )
        self.G.train().requires_grad_(False).to(self.device)
        self.D.train().requires_grad_(False).to(self.device)

    def rows(self, num: int) -> list[torch.Tensor]:
        """Conditions: c, and h where there is one."""
        c = torch.zeros(num, 0, device=self.device)
        h = torch.nn.functional.normalize(torch.randn(num, max(self.spec["h_dim"], 1), device=self.device), dim=1)
        return [c, h[:, : self.spec["h_dim"]]] if self.takes_h else [c]

    def steps(self) -> dict[str, Callable[[], None]]:
        """Phase -> what runs it once."""
        spec, num = self.spec, self.spec["batch"]
        loss = StyleGAN2Loss(
            device=self.device,
            G_mapping=self.G.mapping,
            G_synthesis=self.G.synthesis,
            D=self.D,
            style_mixing_prob=spec["style_mixing"],
            r1_gamma=spec["gamma"],
            pl_weight=spec["pl_weight"],
        )
        real = torch.randn(num, 3, spec["resolution"], spec["resolution"], device=self.device).clamp(-1, 1)
        rows, networks = self.rows(num), {"G": self.G, "D": self.D}
        # Their betas, [0, 0.99], are refused by this torch as written: floats alone.
        optimizers = {
            k: torch.optim.Adam(net.parameters(), lr=0.0025, betas=(0.0, 0.99)) for k, net in networks.items()
        }

        def run(name: str, gain: float) -> None:
            network, optimizer = networks[name[0]], optimizers[name[0]]
            optimizer.zero_grad(set_to_none=True)
            network.requires_grad_(True)
            z = torch.randn(num, spec["z_dim"], device=self.device)
            loss.accumulate_gradients(name, real, *rows, z, *rows, True, gain)
            network.requires_grad_(False)
            for parameter in network.parameters():
                if parameter.grad is not None:
                    torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
            optimizer.step()

        return {name: lambda name=name, gain=gain: run(name, gain) for name, gain in spec["phases"].items()}

    def generators(self) -> dict[str, Callable[[], None]]:
        """Batch -> what generates one."""
        self.G.eval()

        @torch.no_grad()
        def run(num: int) -> None:
            z = torch.randn(num, self.spec["z_dim"], device=self.device)
            self.G(z, *self.rows(num), noise_mode="const")

        return {str(num): lambda num=num: run(num) for num in self.spec["batches"]}


def main() -> None:
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = spec["tf32"]
    peer = Peer(spec)
    reset_peak(peer.device)
    works = peer.steps() if spec["measure"] == "step" else peer.generators()
    times = least(list(works.values()), peer.device, spec["repeats"])
    print(json.dumps({"sec": dict(zip(works, times, strict=True)), "peak_mib": peak_mib(peer.device)}))


if __name__ == "__main__":
    main()
