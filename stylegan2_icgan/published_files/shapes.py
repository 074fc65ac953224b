"""What the shapes of a state dict tell of the network it belongs to."""

from collections.abc import Callable, Mapping

import torch

from stylegan2_icgan.published_files.pickle_reader import Refusal, quoted

WIDEST = 1 << 15  # no layer of such networks is wider; what a file claims beyond is not made room for

Tensors = Mapping[str, torch.Tensor]


def shape_of(tensors: Tensors, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that has to be there.

    Raises:
        Refusal: it is not, or has another number of axes, or is wider than any network's.
    """
    if name not in tensors:
        raise Refusal(f"has no tensor {name}; expected the state dict of a generator")
    shape = tuple(tensors[name].shape)
    if len(shape) != axes or not all(1 <= length <= WIDEST for length in shape):
        raise Refusal(f"has {name} of shape {list(shape)}; expected {axes} axes of 1 to {WIDEST}")
    return shape


def expect(tensors: Tensors, name: str, *shape: int) -> None:
    """Refuse a state dict in which a tensor is missing or of another shape.

    So that a file that names a few large widths, and has little, can't have a large network built.

    Raises:
        Refusal: it is.
    """
    found = shape_of(tensors, name, len(shape))
    if found != shape:
        raise Refusal(f"has {name} of shape {list(found)}; its other tensors ask for {list(shape)}")


def fit(make: Callable[[], torch.nn.Module], tensors: Tensors, what: str) -> dict[str, torch.Tensor]:
    """The state dict that the network takes, float32 where it is floating point.

    Args:
        make: makes the network, with or without memory for its tensors.
        what: the network's name, for errors.

    Raises:
        Refusal: a tensor is missing, left over or of another shape.
    """
    try:
        expected = make().state_dict()
    except (ValueError, RuntimeError) as error:
        raise Refusal(f"describes a {what} that can't be built ({' '.join(str(error).split())[:200]})") from None
    missing = [name for name in expected if name not in tensors]
    left_over = [name for name in tensors if name not in expected]
    other = [name for name in expected if name in tensors and expected[name].shape != tensors[name].shape]
    if missing:
        raise Refusal(f"lacks {missing[0]} of the {what} ({len(missing)} of its {len(expected)} tensors)")
    if left_over:
        raise Refusal(f"has {quoted(left_over[0])}, which the {what} has not ({len(left_over)} such tensors)")
    if other:
        name = other[0]
        shapes = f"{list(tensors[name].shape)}; the {what} takes {list(expected[name].shape)}"
        raise Refusal(f"has {name} of shape {shapes}")
    own = {"memory_format": torch.contiguous_format}  # not a view of something larger, which would be saved whole
    return {name: tensors[name].to(like.dtype).clone(**own) for name, like in expected.items()}
