"""Exported folders on the Hugging Face hub."""

import re
from pathlib import Path

from stylegan2_icgan.exporting.folder import READ
from torch_utils.command_line import UserError
from torch_utils.published import unreachable
from torch_utils.weights import one_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def fetch_folder(hub_id: str, revision: str = "main") -> Path:
    """The folder of a repository, in the hub's cache on this machine, or fetched; off line refused within seconds.

    Raises:
        UserError: the extra is not installed, there is no such repository, or the hub can't be reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError:
        raise UserError(f"{hub_id} is on the Hugging Face hub, which needs: pip install huggingface_hub") from None
    cached = [huggingface_hub.try_to_load_from_cache(hub_id, name, revision=revision) for name in READ]
    folders = {Path(path).parent for path in cached if isinstance(path, str)}
    if len(folders) == 1 and all(isinstance(path, str) for path in cached):
        return folders.pop()
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    if not reason:
        try:
            paths = [huggingface_hub.hf_hub_download(hub_id, name, revision=revision) for name in READ]
            return Path(paths[0]).parent
        except Exception as error:  # the client has kinds of its own; each means the same to the user
            reason = one_line(error)
    raise UserError(
        f"{hub_id} is neither a file, nor a folder, nor to be had from the Hugging Face hub ({reason}); "
        "give the path of a snapshot or of an exported folder"
    )
