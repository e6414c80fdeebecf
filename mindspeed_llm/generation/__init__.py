"""Generate answers to a few prompts at each evaluation of a training run (--generate-prompts).

    prompts = load_prompts(arguments, manifests, tokenizer)     rank 0: text → token ids; all faults of the file at once
    answers = AnswersAtEvaluation(arguments, prompts)           called by the training loop, which handles no text

This package knows text and the model; training knows only a callback. `prompts.py` imports neither torch nor megatron.
"""

from mindspeed_llm.generation.prompts import Prompt, PromptSet, load_prompts, read_prompts

__all__ = ["Prompt", "PromptSet", "load_prompts", "read_prompts"]
