"""Packed files → the packs of a split, in the order in which they are trained."""

from mindspeed_llm.datasets.order import Order, PackOrder
from mindspeed_llm.datasets.packed import Component, Pack, PackedDataset
from mindspeed_llm.datasets.splits import SPLITS, split_packs

__all__ = ["SPLITS", "Component", "Order", "Pack", "PackOrder", "PackedDataset", "split_packs"]
