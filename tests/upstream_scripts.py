"""Read upstream_scripts.json, the flags of MindSpeed-LLM's tune scripts, without the parser of this project.

The file has facts only: the branch and commit of a script, its machines and devices per machine, its environment, and
the value of each flag (true for a switch). `flags` of the file apply to all scripts, `like` names a script whose flags
apply to this one, and null removes a flag. A value of several words is separated by blanks, and paths are placeholders.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("upstream_scripts.json")
CONTENT: dict[str, Any] = json.loads(FILE.read_text("utf-8"))


@dataclass(frozen=True)
class UpstreamScript:
    """One script.

    Attributes:
        name: branch and path below examples/mcore.
        machines: number of machines.
        devices: devices per machine.
        environment: environment variables that the script sets.
        flags: flag → value, or True for a switch.
    """

    name: str
    machines: int
    devices: int
    environment: dict[str, str]
    flags: dict[str, str | bool]

    @property
    def ranks(self) -> int:
        """Number of ranks of the job."""
        return self.machines * self.devices

    @property
    def words(self) -> list[str]:
        """The command line of posttrain_gpt.py."""
        values = {flag: [] if value is True else str(value).split() for flag, value in self.flags.items()}
        return [word for flag, value in values.items() for word in (flag, *value)]

    def number(self, flag: str, default: int | None = None) -> int:
        """Return the whole number that a flag has, or its default in Megatron."""
        value = self.flags.get(flag, default)
        assert value is not None and value is not True, f"{self.name}: {flag}"
        return int(value)

    @property
    def layout(self) -> dict[str, Any]:
        """Sizes of the parallel layout."""
        tensor = self.number("--tensor-model-parallel-size", 1)
        stages = self.number("--pipeline-model-parallel-size", 1)
        layers = self.number("--num-layers")
        uneven = self.flags.get("--num-layer-list")
        virtual = self.flags.get("--num-layers-per-virtual-pipeline-stage")
        per_stage = [int(part) for part in str(uneven).split(",")] if uneven else [layers // stages] * stages
        return {
            "tensor": tensor,
            "pipeline": stages,
            "data": self.ranks // (tensor * stages),
            "sequence parallel": "--sequence-parallel" in self.flags and tensor > 1,
            "distributed optimizer": "--use-distributed-optimizer" in self.flags,
            "layers of stages": per_stage,
            "virtual stages": per_stage[0] // int(str(virtual)) if virtual else None,
        }

    @property
    def model(self) -> dict[str, Any]:
        """Shape of the model."""
        hidden, heads = self.number("--hidden-size"), self.number("--num-attention-heads")
        return {
            "layers": self.number("--num-layers"),
            "hidden": hidden,
            "ffn": self.number("--ffn-hidden-size"),
            "heads": heads,
            "groups": self.number("--num-query-groups") if "--group-query-attention" in self.flags else heads,
            "head size": self.number("--kv-channels", hidden // heads),
            "qkv bias": "--add-qkv-bias" in self.flags,
            "qk norm": "--qk-layernorm" in self.flags,
            "tied": "--untie-embeddings-and-output-weights" not in self.flags,
            "epsilon": float(self.flags.get("--norm-epsilon", "1e-5")),
            "rotary base": float(self.flags.get("--rotary-base", "10000")),
            "rope scaling": 8.0 if self.flags.get("--rope-scaling-type") == "llama3" else None,
            "vocabulary": self.flags.get("--padded-vocab-size") or self.flags.get("--vocab-size"),
        }

    @property
    def adapter(self) -> dict[str, Any] | None:
        """LoRA; None in a full-parameter script."""
        if "--lora-target-modules" not in self.flags:
            return None
        # Layers of one projection have the name of peft here.
        names = {"linear_proj": "o_proj", "linear_fc2": "down_proj"}
        return {
            "targets": tuple(names.get(name, name) for name in str(self.flags["--lora-target-modules"]).split()),
            "rank": self.number("--lora-r", 16),
            "alpha": float(self.flags.get("--lora-alpha", "32")),
        }

    @property
    def run(self) -> dict[str, Any]:
        """Batch, learning rate, steps and recomputation."""
        micro, batch = self.number("--micro-batch-size"), self.number("--global-batch-size")
        return {
            "micro-batch": micro,
            "batch": batch,
            "micro-batches": batch // (micro * self.layout["data"]),
            "slots": self.number("--seq-length"),
            "lr": float(self.flags["--lr"]),
            "min lr": float(self.flags.get("--min-lr", "0")),
            "decay": self.flags.get("--lr-decay-style", "linear"),
            "warm-up": float(self.flags.get("--lr-warmup-fraction", "0")),
            "weight decay": float(self.flags.get("--weight-decay", "0.01")),
            "betas": (float(self.flags["--adam-beta1"]), float(self.flags["--adam-beta2"])),
            "steps": self.number("--train-iters"),
            "variable lengths": "--no-pad-to-seq-lengths" in self.flags,
            "neat": "--neat-pack" in self.flags,
        }


def _flags_of(name: str) -> dict[str, str | bool]:
    row = CONTENT["scripts"][name]
    base = _flags_of(row["like"]) if "like" in row else CONTENT["flags"]
    return {flag: value for flag, value in {**base, **row["flags"]}.items() if value is not None}


SCRIPTS = {
    name: UpstreamScript(
        name, *row["devices"], {**CONTENT["environment"], **row.get("environment", {})}, _flags_of(name)
    )
    for name, row in CONTENT["scripts"].items()
}

# Script → flag for which it is refused. Everything else is accepted.
CONTEXT_PARALLEL = "--context-parallel-size"
REFUSED_ADAPTERS = {
    "2.3.0 llama2/tune_llama2_70b_qlora_ptd.sh": "--qlora",
    "2.3.0 llama2/tune_llama2_7b_lu_lora_ptd.sh": "--lu-lora-final-layer-index",
}
REFUSED = REFUSED_ADAPTERS | {
    f"{branch} {script}": CONTEXT_PARALLEL
    for branch, scripts in {
        "2.3.0": (
            "llama2/tune_llama2_7b_full_pack_16k.sh",
            "llama2/tune_llama2_7b_full_pack_32k.sh",
            "qwen25/tune_qwen25_72b_32k_full_pack.sh",
            "qwen3/tune_qwen3_32b_256K_full_pack_A3_ptd.sh",
            "qwen3/tune_qwen3_32b_32K_full_pack_A3_ptd.sh",
        ),
        "master": (
            "qwen25/tune_qwen25_72b_32k_full_pack.sh",
            "qwen3/tune_qwen3_32b_256K_full_pack_A3_ptd.sh",
            "qwen3/tune_qwen3_32b_32K_full_pack_A3_ptd.sh",
        ),
    }.items()
    for script in scripts
}
ACCEPTED = [name for name in SCRIPTS if name not in REFUSED]


def words_of(script: UpstreamScript, *left_out: str) -> list[str]:
    kept = {flag: value for flag, value in script.flags.items() if flag not in left_out}
    return UpstreamScript(script.name, script.machines, script.devices, {}, kept).words
