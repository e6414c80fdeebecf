"""Arguments for answers that the model generates during training."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindspeed_llm.arguments.bounds import LENGTH, between
from mindspeed_llm.arguments.resume_policy import FREE


@dataclass
class GenerationArguments:
    """Generation during training.

    Answers to a few prompts show what the model has learned. They do not change the run.
    """

    generate_prompts: str | None = field(default=None, metadata=FREE | {"metavar": "FILE"})
    """JSONL file of prompts, {"prompt": TEXT} or {"messages": [{"role", "content"}, ...]}, optionally with the expected
    "answer". At each evaluation the model answers them greedily; the answers are in generations.jsonl of the run
    directory. A prompt of an instruction run is the text of a user, otherwise it is continued as it is."""
    generate_tokens: int = field(default=64, metadata=FREE | between(1, LENGTH))
    """Maximum number of tokens of an answer to --generate-prompts."""
