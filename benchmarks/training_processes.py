"""Processes of training.py that train one step per request: programs of other libraries, and methods with LoRA."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import training_steps as own


class Peer:
    """A process that trains one step per request: training_peers.py, or training_lora.py for the kinds full and lora.

    Attributes:
        versions: versions of the libraries, or for this project the number of trained parameters.
        last: answer to the last request.

    Raises:
        LookupError: If a required package is missing or the process does not start.
    """

    def __init__(self, python: str, kind: str, samples: Path, threads: int, clock: str) -> None:
        program = Path(__file__).with_name(f"training_{'lora' if kind in ('full', 'lora') else 'peers'}.py")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [python, str(program), kind, str(samples), str(threads), clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not os.environ.get("PEERS_STDERR") else None,
            text=True,
            env=environment,
        )
        first = self._answer()
        if "missing" in first:
            raise LookupError(first["missing"])
        self.versions: str = first["versions"]
        self.last: dict[str, Any] = {}

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            errors = (self.process.stderr.read() if self.process.stderr else "").strip().splitlines()
            raise LookupError(f"it ended with status {self.process.wait()}: {errors[-1] if errors else 'see above'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def step(self) -> tuple[float, float]:
        """Train one step; return useful tokens and slots per second."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.last = answer = self._answer()
        return answer["tokens"] / answer["seconds"], answer["slots"] / answer["seconds"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def write_samples(samples: own.Samples, path: Path, lora: bool) -> None:
    """Write the samples and the settings of all methods for the processes of training_peers.py and training_lora.py."""
    settings = {
        "model": {
            "vocab_size": own.VOCABULARY, "hidden_size": own.HIDDEN, "intermediate_size": own.FFN,
            "num_hidden_layers": own.LAYERS, "num_attention_heads": own.HEADS, "num_key_value_heads": own.GROUPS,
            "max_position_embeddings": samples.seq_length, "tie_word_embeddings": False,
            "rms_norm_eps": own.NORM_EPSILON,
            "rope_parameters": {"rope_type": "default", "rope_theta": float(own.ROTARY_BASE)},
        },
        "learning_rate": own.LEARNING_RATE, "weight_decay": own.WEIGHT_DECAY, "rows": own.ROWS,
        "tokens_of_a_step": samples.seq_length, "seq_length": samples.seq_length, "shape": own.current_shape(),
        "lora": {"r": own.LORA_RANK, "lora_alpha": own.LORA_ALPHA} if lora else None,
    }  # fmt: skip
    ids, labels = (np.concatenate(parts) for parts in zip(*samples.content(), strict=True))
    arrays = {"ids": ids, "labels": labels, "lengths": samples.lengths, "starts": samples.starts}
    np.savez(path, settings=np.array(json.dumps(settings)), **arrays)


def peers_of(
    options: argparse.Namespace, samples: Path, kinds: dict[str, str]
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Start processes; return those that run, and the reason for each that does not, by letter.

    Args:
        options: command line.
        samples: file of `write_samples`.
        kinds: letter → kind.
    """
    running, missing = {}, {}
    for letter, kind in kinds.items():
        python = sys.executable if kind in ("full", "lora") else options.peers_python
        try:
            running[letter] = Peer(python, kind, samples, options.threads, options.clock)
        except LookupError as error:
            missing[letter] = str(error)
    return running, missing
