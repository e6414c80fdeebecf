"""Norms of large tensors in float64, block by block: torch would copy the whole tensor to float64."""

from __future__ import annotations

import math

import torch

BLOCK = 2**20  # elements


def norm_of(tensor: torch.Tensor) -> float:
    """Return the norm of a tensor [...] of any shape."""
    return math.sqrt(sum(float(block.double().square().sum()) for block in tensor.flatten().split(BLOCK)))


def norm_of_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the norm of the difference of two tensors [...] of the same shape."""
    blocks = zip(first.flatten().split(BLOCK), second.flatten().split(BLOCK), strict=True)
    return math.sqrt(sum(float((one.double() - other.double()).square().sum()) for one, other in blocks))


def largest_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest absolute difference of two tensors [...] of the same shape; NaN if there is one."""
    blocks = zip(first.flatten().split(BLOCK), second.flatten().split(BLOCK), strict=True)
    largest = [(one.double() - other.double()).abs().max() for one, other in blocks]
    return float(torch.stack(largest).max())
