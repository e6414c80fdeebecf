"""Packed files → the packs of a split in the order of training → the micro-batches of each rank.

Importing this package does not import torch; building a batch does.
"""

from mindspeed_llm.data.dataloader import DataLoaderSettings, PackedDataLoader
from mindspeed_llm.data.datasets import Datasets, build_datasets
from mindspeed_llm.data.length_grouping import LengthGroupedOrder
from mindspeed_llm.data.micro_batch import MicroBatch, loss_weights
from mindspeed_llm.data.packed_dataset import DatasetShare, PackedDataset
from mindspeed_llm.data.prefetching import prefetch
from mindspeed_llm.data.sample_order import PackOrder, SampleOrder
from mindspeed_llm.data.splits import SPLITS

__all__ = [
    "SPLITS",
    "DataLoaderSettings",
    "DatasetShare",
    "Datasets",
    "LengthGroupedOrder",
    "MicroBatch",
    "PackOrder",
    "PackedDataLoader",
    "PackedDataset",
    "SampleOrder",
    "build_datasets",
    "loss_weights",
    "prefetch",
]
