"""A page to try a trained model on: pick an instance or send an image, see samples, mix two. Needs gradio.

\b
    python demo.py --network=S.pt                          # then open http://127.0.0.1:7860
    python demo.py --network=S.pt --data=photos.zip        # nearest images of the data set, by its stored features
    python demo.py --network=S.pt --host=0.0.0.0           # for other machines, too
"""

import errno
import os
import socket
import sys
import tempfile
from pathlib import Path

import click

from stylegan2_icgan.demo_page.answers import Answers
from stylegan2_icgan.models import open_model
from stylegan2_icgan.using.flags import OPS
from torch_utils.command_line import Command, NearestChoice, UserError
from torch_utils.custom_ops import MODES

NO_GRADIO = "demo.py needs gradio, which is not here: pip install -e .[demo] in the checkout (or pip install gradio)"


def check_address(host: str, port: int) -> None:
    """
    Raises:
        UserError: the port is taken, or the address is none of this machine.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"--port={port}: expected 1 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port={port} is in use on {host}; give another, for example --port={port % 65535 + 1}"
            ) from None
        reason = error.strerror or error
        raise UserError(
            f"--host={host} --port={port}: can't listen there ({reason}); expected an address of this machine"
        ) from None


@click.command(cls=Command, help=__doc__)
@click.option("--network", type=Path, required=True, help="Snapshot written by train.py.", metavar="FILE")
@click.option("--data", type=Path, help="Show the nearest of these training images.", metavar="ZIP")
@click.option("--nearest", type=int, default=6, show_default=True, help="How many of them.", metavar="N")
@click.option("--extractor-weights", type=Path, help="Local weights of the model's extractor.", metavar="FILE")
@click.option("--ops", type=NearestChoice(MODES), default="auto", show_default=True, help=OPS)
@click.option("--device", type=NearestChoice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.", metavar="ADDRESS")
@click.option("--port", type=int, default=7860, show_default=True, help="Port to listen at.", metavar="N")
def main(
    network: Path,
    data: Path | None,
    nearest: int,
    extractor_weights: Path | None,
    ops: str,
    device: str,
    host: str,
    port: int,
) -> None:
    if nearest < 1:
        raise UserError(f"--nearest={nearest}: expected at least 1")
    check_address(host, port)
    model = open_model(network, device, ops)
    with tempfile.TemporaryDirectory(prefix="icgan-demo-") as folder:
        # Read when gradio is imported: no statistics, and what visitors send goes when the demo ends.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": folder}
        try:
            from stylegan2_icgan.demo_page.page import serve
        except ImportError as error:
            if error.name != "gradio":
                raise
            raise UserError(NO_GRADIO) from None
        answers = Answers(model, data, nearest, extractor_weights)
        serve(answers, Path(folder), host, port, click.echo)


if __name__ == "__main__":
    sys.exit(main())
