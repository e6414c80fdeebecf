"""Packed files → the packs of a split, in the order in which they are trained."""

from mindspeed_llm.datasets.building import Datasets, build_datasets
from mindspeed_llm.datasets.length_grouping import LengthGroupedOrder
from mindspeed_llm.datasets.order import Order, PackOrder
from mindspeed_llm.datasets.packed import Component, Pack, PackedDataset
from mindspeed_llm.datasets.splits import SPLITS

__all__ = [
    "SPLITS",
    "Component",
    "Datasets",
    "LengthGroupedOrder",
    "Order",
    "Pack",
    "PackOrder",
    "PackedDataset",
    "build_datasets",
]
