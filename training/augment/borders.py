"""What lies beyond the border of an image, and moving images by whole pixels."""

import torch
from torch import Tensor


def reflect_pad(images: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Continue images along one axis by mirror images of themselves, any number of times.

    `torch.nn.functional.pad` reflects once at most; the filters here are longer than an image of 8 pixels. The pieces
    are copied, never gathered, so that gradients are summed in a fixed order on every device.

    Args:
        images: [N, C, H, W], at least 2 long along `dim`.
        dim: 2 or 3.
        before: pixels to add before the first, >= 0.
        after: pixels to add after the last, >= 0.

    Returns:
        `before` + size + `after` along `dim`; the pixels at the border are not repeated.
    """
    size = images.shape[dim]
    back = images.narrow(dim, 1, size - 2).flip(dim)
    period = torch.cat([images, back], dim) if size > 2 else images
    length = period.shape[dim]
    pieces, start, missing = [], -before % length, before + size + after
    while missing > 0:
        piece = period.narrow(dim, start, min(length - start, missing))
        pieces.append(piece)
        start, missing = 0, missing - piece.shape[dim]
    return torch.cat(pieces, dim)


def move(images: Tensor, shift: Tensor, border: str) -> Tensor:
    """Move each image by whole pixels, exactly.

    Args:
        images: [N, C, H, W], any dtype.
        shift: integer [N, 2], pixels to the right and down, smaller than the image.
        border: what moves in, 'reflect' (the image's own mirror image) or 'zeros'.

    Returns:
        [N, C, H, W]; pixel (x, y) is the image's pixel (x - shift_x, y - shift_y).
    """
    for dim, offsets in ((3, shift[:, 0]), (2, shift[:, 1])):
        size = images.shape[dim]
        along = [1, 1, 1, 1]
        along[dim] = size
        source = torch.arange(size, device=images.device).view(along) - offsets.view(-1, 1, 1, 1)
        folded = source.remainder(2 * size - 2)
        index = torch.minimum(folded, 2 * size - 2 - folded)
        moved = images.gather(dim, index.expand(images.shape))
        images = moved if border == "reflect" else torch.where((source >= 0) & (source < size), moved, 0)
    return images
