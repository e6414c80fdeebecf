"""Datasets and dataloader: from packed files to the micro-batches of each data-parallel rank.

The steps are: open and check the files (`datasets.py`, `compatibility.py`), divide the packs into splits
(`splits.py`), put the packs of a split into the order of training (`sample_order.py`, `length_grouping.py`,
`blending.py`), and build micro-batches with loss weights (`dataloader.py`, `micro_batch.py`).

Importing this package does not import torch; building a micro-batch does.
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
