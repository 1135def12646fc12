"""Takes a sample of the masks for the finish event, so that reports can compare the masks of runs from journals."""

import numpy as np
import torch

from lib.prune.dense import NoPruning
from lib.prune.pruners import AnyPruner
from lib.record import mask_sample


@torch.no_grad()
def sampled_masks(pruner: AnyPruner) -> dict[str, str]:
    """The field of a finish event with the sample; {} for a run that prunes nothing.

    Masks are the same on every rank. They are read where they lie, so only the sample leaves the device.
    """
    if isinstance(pruner, NoPruning) or pruner.kept == pruner.total:
        return {}
    shapes = {weight.name: tuple(weight.mask.shape) for weight in pruner.weights}
    chosen, kept, start = mask_sample.positions(shapes), [], 0
    for weight in pruner.weights:
        end = start + weight.mask.numel()
        inside = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, end)] - start
        places = torch.from_numpy(inside).to(weight.mask.device)
        kept.append(weight.mask.reshape(-1)[places].cpu().numpy())
        start = end
    return {mask_sample.FIELD: mask_sample.encode(shapes, np.concatenate(kept))}
