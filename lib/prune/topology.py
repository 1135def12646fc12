"""Predicts missing links of a layer from those that it has: the node-based score CH2-L3 of Cannistraci-Hebb theory."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ROWS = 1024  # neurons whose communities are counted at once, so that memory does not grow with the square of a layer


def ch2_l3n(mask: Tensor) -> Tensor:
    """float32 scores of the shape of `mask`, uint8 (m outputs, n inputs); they mean something where the mask is 0.

    CH2-L3n of Zhang et al., arXiv 2501.19107, equation 3 and algorithm 1. A layer is a graph of its outputs and inputs.
    A missing link (u, v) has a local community: the nodes b and j on its paths u - b - j - v of three links. Its score
    is the sum over these nodes of (1 + i) / (1 + e). i of a node's links lead into the community, and e to nodes
    outside of it, without u and v. No path: 0.

    All j of a link have i = common[u, j], the inputs that u and j share, and e = degree[j] - common[u, j] - 1, where 1
    is the link to v. The same holds for all b, with outputs and inputs exchanged. So four products of matrices suffice:
    `operations`. Memory: four float32 copies of the mask, and what 1,024 nodes share with all others, four times.
    """
    links = mask.float()
    return _from_one_side(links).add_(_from_one_side(links.T).T)


def operations(shape: Sequence[int]) -> int:
    """Operations of the matrix products for a mask of this shape; a multiplication with an addition is 2."""
    return 4 * math.prod(shape) * sum(shape)


def _from_one_side(links: Tensor) -> Tensor:
    """The part of the scores that comes from nodes on the side of the rows of `links`."""
    degree = links.sum(1)
    parts = []
    for rows in links.split(_ROWS):
        common = rows @ links.T  # exact, because float32 has all integers up to 2^24
        # Nodes that share nothing with u are in no community. Of those with a link to v, degree exceeds common.
        worth = (common + 1).div_((degree - common).clamp_(min=1)).mul_(common > 0)
        parts.append(worth @ links)
    return torch.cat(parts)
