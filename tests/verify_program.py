"""One of two ranks of the comparisons with transformers: every family with tensor parallelism.

Started by test_verify_families.py with RANK and WORLD_SIZE set. Rank 0 writes status and output of each family.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from hugging_face_models import MODELS, folder_name
from verify_runs import compare

from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.devices import apply_patches

LAYOUT = ["--tensor-model-parallel-size", "2", "--sequence-parallel", "--packs", "1", "--reference-float64", "never"]


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    configure_logging(rank)
    apply_patches("cpu")
    from mindspeed_llm.training.process_groups import init_process_groups, seed_ranks
    from mindspeed_llm.verify import own_recorder
    from mindspeed_llm.verify.verify_arguments import parse_verify_arguments

    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    words = ["--load", str(folder / folder_name("Qwen2.5")), "--data-path", str(folder / "data"), *LAYOUT]
    init_process_groups(parse_verify_arguments(words, 2).run.parallel)
    seed_ranks(1)
    results = {name: compare(folder / folder_name(name), folder / "data", *LAYOUT, ranks=2) for name in MODELS}
    # Without this mark, the gradients of the norms are not summed over the tensor-parallel ranks.
    right = own_recorder.wrap_chunks

    def without_sums(parallel, config, chunks, **others):  # type: ignore[no-untyped-def]
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.sequence_parallel = False
        return right(parallel, config, chunks, **others)

    own_recorder.wrap_chunks = without_sums
    results["fault"] = compare(folder / folder_name("Qwen2.5"), folder / "data", *LAYOUT, ranks=2)
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    # Rank 1 waits for the references that rank 0 runs.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
