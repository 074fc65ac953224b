"""Modules of torch in the pickles of StyleGAN2-ADA and of IC-GAN on it.

There a module is pickled as a call of one function with a dictionary: the source text of its class, the name of the
class, and the attributes of the object. The source text, which that code base executes, is thrown away here.
"""

from typing import Any

import torch

from stylegan2_icgan.published_files.pickle_reader import Known, Refusal, key_of, quoted

MOST = 10_000  # modules or tensors of a network; one that holds a module again and again would grow with every level
LONGEST_NAME = 500


class ModuleRecord:
    """The name of a class and the attributes of an object of it."""

    def __init__(self, meta: object) -> None:
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            raise TypeError
        if meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
            raise TypeError
        self.class_name: str = meta["class_name"]
        self.state: dict[str, Any] = meta["state"]

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """What the object was made with.

        Raises:
            Refusal: not written down, or without names.
        """
        args, kwargs = self.state.get("_init_args"), self.state.get("_init_kwargs")
        if not isinstance(kwargs, dict) or not isinstance(args, tuple) or args:
            raise Refusal(f"does not say by name what its {quoted(self.class_name)} was made with")
        return kwargs


def state_dict(record: ModuleRecord) -> dict[str, torch.Tensor]:
    """Parameters and buffers by their full names.

    Raises:
        Refusal: what torch's modules do not look like.
    """
    tensors: dict[str, torch.Tensor] = {}
    waiting, seen = [("", record)], 0
    while waiting:
        prefix, module = waiting.pop()
        seen += 1
        unsaved = module.state.get("_non_persistent_buffers_set", set())
        if not isinstance(unsaved, set):
            raise Refusal(f"has a {quoted(module.class_name)} whose buffers are not listed as torch lists them")
        for name, value in [*_items(module, "_parameters"), *_items(module, "_buffers")]:
            if isinstance(value, torch.Tensor) and name not in unsaved:
                tensors[prefix + name] = value
        for name, child in _items(module, "_modules"):
            if child is not None and not isinstance(child, ModuleRecord):
                raise Refusal(f"has {quoted(prefix + name)}, which is no module of this kind of pickle")
            if child is not None:
                waiting.append((f"{prefix}{name}.", child))
        if seen + len(waiting) + len(tensors) > MOST or len(prefix) > LONGEST_NAME:
            raise Refusal(f"has a network of more than {MOST:,} modules and tensors, or of endless names")
    return tensors


def _items(module: ModuleRecord, group: str) -> list[tuple[str, Any]]:
    found = module.state.get(group)
    if not isinstance(found, dict) or len(found) > MOST or not all(isinstance(name, str) for name in found):
        raise Refusal(f"has a {quoted(module.class_name)} without {group}")
    return list(found.items())


def _dictionary() -> dict[Any, Any]:
    return {}


def _set(items: object) -> set[Any]:
    if not isinstance(items, list):
        raise TypeError
    return {key_of(item) for item in items}


HOMES = ("", "stylegan2_ada_pytorch.")  # packages that the same files are imported from
MODULES: Known = {
    "collections.OrderedDict": _dictionary,
    "builtins.set": _set,
    "__builtin__.set": _set,  # as the oldest protocols call it
    **{f"{home}dnnlib.util.EasyDict": _dictionary for home in HOMES},
    **{f"{home}torch_utils.persistence._reconstruct_persistent_obj": ModuleRecord for home in HOMES},
}
