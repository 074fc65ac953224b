"""The same shards on a Ray cluster (extra `[ray]`): Ray Data starts the workers and repeats what a lost machine had."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylegan2_icgan.shards import Engine, Job
from torch_utils.command_line import UserError
from torch_utils.files import Countdown
from torch_utils.misc import pick_device

ROOT = Path(__file__).resolve().parent.parent


class _Worker:
    """One process of the cluster: opens data, extractor or index once, then does shard after shard."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.job.device = pick_device("auto")  # the GPU that Ray has given to this worker, if any

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self.job(int(row["shard"]))
        except UserError as error:
            return {"shard": row["shard"], "refused": str(error)}  # as a value: no other attempt would help
        return {"shard": row["shard"], "refused": ""}


def ray_engine(address: str | None, workers: int, gpus: float) -> Engine:
    """Shards done by `workers` processes of a Ray cluster with `gpus` GPUs each.

    Data and store must be seen under the same paths on all machines.

    Args:
        address: of the cluster; None: RAY_ADDRESS, or a cluster of this machine alone.

    Raises:
        UserError: Ray is not installed, or the cluster can't be reached.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--engine=ray needs Ray, which is not installed: pip install 'ray[data]'") from None

    def run(job: Job, shards: Sequence[int], progress: Countdown) -> None:
        if not shards:
            return
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(
                    address=address,
                    runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
                    logging_level="ERROR",
                    log_to_driver=False,
                )
            except (ConnectionError, ValueError) as error:
                raise UserError(f"--ray-address={address}: no Ray cluster answers there ({error})") from None
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        pool = ray.data.ActorPoolStrategy(size=workers)
        results = rows.map(_Worker, fn_constructor_args=(job,), num_gpus=gpus or None, compute=pool)
        for done, result in enumerate(results.iter_rows(), start=1):
            if result["refused"]:
                raise UserError(result["refused"])
            progress(done)

    return run
