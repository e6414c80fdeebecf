"""Datasets and dataloader: from packed files to the micro-batches of each data-parallel rank.

Packed files for fine-tuning. The steps are: open and check the files (`datasets.py`, `compatibility.py`), divide the
packs into splits (`splits.py`), put the packs of a split into the order of training (`sample_order.py`,
`length_grouping.py`, `blending.py`), and build micro-batches with loss weights (`dataloader.py`, `micro_batch.py`).

Document files for pretraining are read as blocks instead: open and check the files (`document_datasets.py`), divide the
documents into splits (`document_splits.py`), read each split as a stream of tokens (`document_stream.py`) in blocks
(`block_dataset.py`) in the order of training (`block_order.py`), and build micro-batches (`block_dataloader.py`).

Importing this package does not import torch; building a micro-batch does.
"""

from mindspeed_llm.data.block_dataloader import BlockDataLoader
from mindspeed_llm.data.block_dataset import BlockDataset, BlockKind
from mindspeed_llm.data.dataloader import DataLoaderSettings, PackedDataLoader, TokenDataLoader
from mindspeed_llm.data.datasets import Datasets, build_datasets
from mindspeed_llm.data.length_grouping import LengthGroupedOrder
from mindspeed_llm.data.micro_batch import MicroBatch, loss_weights
from mindspeed_llm.data.packed_dataset import DatasetShare, PackedDataset
from mindspeed_llm.data.prefetching import prefetch
from mindspeed_llm.data.sample_order import PackOrder, SampleOrder
from mindspeed_llm.data.splits import SPLITS

__all__ = [
    "SPLITS",
    "BlockDataLoader",
    "BlockDataset",
    "BlockKind",
    "DataLoaderSettings",
    "DatasetShare",
    "Datasets",
    "LengthGroupedOrder",
    "MicroBatch",
    "PackOrder",
    "PackedDataLoader",
    "PackedDataset",
    "SampleOrder",
    "TokenDataLoader",
    "build_datasets",
    "loss_weights",
    "prefetch",
]
