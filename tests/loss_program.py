"""Compare the chunked loss with the dense one on tensor-parallel groups of 1, 2 and 4 ranks.

Run by torchrun with four ranks; rank 0 prints one JSON line.

Every case compares the loss, the losses of the trained rows, and the gradients of hidden states and weight. The
reference is torch's own cross entropy of the dense logits on one rank, in float64.
"""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mindspeed_llm.devices import apply_patches

apply_patches("cpu")

from mindspeed_llm.model.chunked_cross_entropy import (  # noqa: E402
    OutputLayer,
    TrainedSlots,
    chunked_cross_entropy,
)

# The last of four ranks holds padding alone.
SLOTS, HIDDEN, VOCABULARY, PADDED = 24, 16, 70, 96
TRAINED = {
    "none": [],
    "one": [13],
    "some": [0, 1, 5, 8, 9, 10, 17, 23],
    "of the last rank": [20, 21, 22, 23],
    "all": list(range(SLOTS)),
}
UPSTREAM = 3.0


def reference(
    hidden: torch.Tensor, weight: torch.Tensor, trained: TrainedSlots, dtype: torch.dtype, ranks: int = 1
) -> list[Any]:
    """Dense loss and gradients in `dtype`, with torch's own cross entropy.

    The gradient of the hidden states is summed over the shards of `ranks` ranks, each rounded to `dtype`.
    """
    hidden, weight = (tensor.detach().clone().to(dtype).requires_grad_() for tensor in (hidden, weight))
    logits = hidden[:, 0] @ weight.t()
    logits.retain_grad()
    rows = logits[torch.from_numpy(trained.slots), :VOCABULARY].to(torch.promote_types(dtype, torch.float32))
    losses = torch.nn.functional.cross_entropy(rows, trained.rows_of(trained.labels), reduction="none")
    total = (losses * trained.rows_of(trained.weights).to(losses.dtype)).sum()
    (total * UPSTREAM).backward()
    shards = zip(logits.grad.chunk(ranks, 1), weight.detach().chunk(ranks), strict=True)
    summed = functools.reduce(torch.add, [gradient @ shard for gradient, shard in shards])
    return [total.detach(), losses.detach(), summed[:, None], weight.grad]


def chunked(
    hidden: torch.Tensor, weight: torch.Tensor, trained: TrainedSlots, layer: OutputLayer, main_grad: torch.dtype | None
) -> tuple[list[Any], dict[str, int]]:
    """The same with the chunked loss on this rank's shards, gathered to whole tensors, and the collectives it made."""
    rank, ranks = layer.rank, layer.ranks
    own = hidden.chunk(ranks)[rank] if layer.sequence_parallel else hidden
    own, shard = own.clone().requires_grad_(), torch.nn.Parameter(weight.chunk(ranks)[rank].clone())
    if main_grad is not None:
        shard.main_grad = torch.ones_like(shard, dtype=main_grad)  # it adds to what is there
        shard.grad_added_to_main_grad = False
    counts: dict[str, int] = {}
    with counted_collectives(counts):
        total, losses = chunked_cross_entropy(own, shard, trained, layer)
        (total * UPSTREAM).backward()
    assert not losses.requires_grad and total.dtype == losses.dtype
    if main_grad is not None:
        assert shard.grad_added_to_main_grad and shard.grad.untyped_storage().nbytes() <= 8
    gradient = shard.grad if main_grad is None else shard.main_grad - 1
    return [
        total.detach(),
        losses,
        gathered(own.grad, layer) if layer.sequence_parallel else own.grad,
        gathered(gradient, layer),
    ], counts


class counted_collectives:  # noqa: N801
    """Count the collectives that run inside the block, by name."""

    NAMES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor")

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts

    def __enter__(self) -> None:
        self.real = {name: getattr(dist, name) for name in self.NAMES}
        for name in self.NAMES:
            setattr(dist, name, self.counting(name))

    def __exit__(self, *_: object) -> None:
        for name, function in self.real.items():
            setattr(dist, name, function)

    def counting(self, name: str) -> Any:
        def call(*arguments: Any, **others: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            return self.real[name](*arguments, **others)

        return call


def gathered(tensor: torch.Tensor, layer: OutputLayer) -> torch.Tensor:
    """The shards of all ranks, one after the other."""
    if layer.group is None:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(layer.ranks)]
    dist.all_gather(parts, tensor.contiguous(), layer.group)
    return torch.cat(parts)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """Norm of the difference ÷ norm of the second."""
    norm = float(other.double().norm())
    return float((one.double() - other.double()).norm()) / norm if norm else float(one.double().norm())


def cases(group: dist.ProcessGroup | None) -> Any:
    """Every combination, with its name."""
    sequence = (False, True) if group is not None else (False,)
    ranks = 1 if group is None else group.size()
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    for name, dtype, chunk_size, split in itertools.product(TRAINED, dtypes, (3, 100), sequence):
        for main_grad in (None, torch.promote_types(dtype, torch.float32)):
            yield (
                f"tp{ranks}, {name} trained, {str(dtype)[6:]}, chunks of {chunk_size}, main_grad {main_grad}"
                + ", sequence parallel" * split,
                (name, dtype, main_grad),
                OutputLayer(VOCABULARY, chunk_size, group, split),
            )


def compare(which: str, dtype: torch.dtype, main_grad: torch.dtype | None, layer: OutputLayer) -> dict[str, Any]:
    """Errors of the chunked and of the dense loss against float64, and the collectives of the former."""
    random = torch.Generator().manual_seed(len(TRAINED[which]))
    hidden = torch.randn(SLOTS, 1, HIDDEN, generator=random, dtype=torch.float64).to(dtype)
    weight = torch.randn(PADDED, HIDDEN, generator=random, dtype=torch.float64).to(dtype)
    slots = np.array(TRAINED[which], dtype=np.int64)
    labels, weights = torch.zeros(1, SLOTS, dtype=torch.int64), torch.zeros(1, SLOTS)
    labels[0, slots] = torch.randint(VOCABULARY, (len(slots),), generator=random)
    weights[0, slots] = torch.rand(len(slots), generator=random)
    trained = TrainedSlots(slots, labels, weights)
    exact = reference(hidden, weight, trained, torch.float64)
    dense = reference(hidden, weight, trained, dtype, layer.ranks)
    ours, counts = chunked(hidden, weight, trained, layer, main_grad)
    return {
        "dtype": str(dtype)[6:],
        "ranks": layer.ranks,
        "sequence_parallel": layer.sequence_parallel,
        "chunked": [relative(one, other) for one, other in zip(ours, exact, strict=True)],
        "dense": [relative(one, other) for one, other in zip(dense, exact, strict=True)],
        "chunks": -(-len(slots) // layer.chunk_size),
        "collectives": counts,
    }


def main() -> None:
    dist.init_process_group("gloo")
    result: dict[str, Any] = {}
    for ranks in (1, 2, 4):
        group = dist.new_group(range(ranks)) if ranks > 1 else None
        if dist.get_rank() < ranks:
            result |= {name: compare(*case, layer) for name, case, layer in cases(group)}
    if dist.get_rank() == 0:
        print(json.dumps(result), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
