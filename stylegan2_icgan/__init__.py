"""Instance-conditional GAN (Casanova et al., NeurIPS 2021, arXiv 2109.05070) as a plugin of the base codebase.

    import stylegan2_icgan as icgan

    G = icgan.load("network-snapshot.pt")
    images = G.sample(h=icgan.features(["a.jpg"], G), seeds=range(8))

`stylegan2_icgan.api` has both, documented. They are loaded when they are first asked for: importing this package alone
does not load torch.
"""

import sys
import types
from typing import Any

import torch_utils  # noqa: F401  its settings must precede torch


class _Package(types.ModuleType):
    """This package: it loads its interface late, and can be asked for features in one word.

    `stylegan2_icgan.features` is a module. So that `stylegan2_icgan.features(images, extractor)` works too, wherever
    that module was imported first, it is made callable at the moment it becomes an attribute of the package.
    """

    def __getattr__(self, name: str) -> Any:
        if name in ("Generator", "load"):
            from stylegan2_icgan import api

            return getattr(api, name)
        if name == "HubGenerator":
            from stylegan2_icgan.exporting.hub_model import HubGenerator

            return HubGenerator
        if name == "features":
            import stylegan2_icgan.features

            return stylegan2_icgan.features
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "features":
            value.__class__ = _Features
        super().__setattr__(name, value)


class _Features(types.ModuleType):
    """The module of extractors; called, `api.features`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from stylegan2_icgan import api

        return api.features(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
