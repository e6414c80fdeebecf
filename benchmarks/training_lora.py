"""Full fine-tuning or LoRA on packs for training.py, one per process: KIND SAMPLES THREADS CLOCK.

full    all weights, method (a) of training.py
lora    an adapter of all linear layers

A process of its own, so that its peak memory can be measured. Requests, answers and SAMPLES are those of
training_peers.py; SAMPLES has in addition the starts of the packs, and an answer the loss.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import training_peers
import training_steps as own

from mindspeed_llm.devices import apply_patches, select_device


def main() -> None:
    """Build the method and train one step per request."""
    kind, path, threads, clock = sys.argv[1:]
    server = training_peers.StepServer(sys.stdout, clock)
    warnings.simplefilter("ignore")  # the files have no manifest
    torch.set_num_threads(int(threads))
    apply_patches("cpu")
    own.Trainer.clock = server.clock
    from mindspeed_llm.training import destroy_process_groups, init_distributed

    data = np.load(path)
    settings = json.loads(str(data["settings"]))
    own.set_shape(settings["shape"])
    samples = own.Samples(data["lengths"], data["starts"], settings["seq_length"])
    init_distributed(own.arguments_of(samples.seq_length), select_device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        [trainer] = own.training_methods(Path(folder), samples, "a", lora=kind == "lora").values()
        parameters = [weight for chunk in trainer.model_and_optimizer.chunks for weight in chunk.parameters()]
        trained = sum(weight.numel() for weight in parameters if weight.requires_grad)
        server.send(versions=f"{trained:,} of {sum(weight.numel() for weight in parameters):,} parameters trained")
        while sys.stdin.readline():
            server.start = server.clock()
            done = trainer.step()
            server.tokens, server.slots = done.tokens, done.slots
            server.send_step(loss=done.loss)
    destroy_process_groups()


if __name__ == "__main__":
    main()
