"""Answer the prompts of --generate-prompts at each evaluation: the callback that the training loop receives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.generation.greedy_decoding import DecodingLimits, decode_greedily
from mindspeed_llm.generation.prompts import Prompt, PromptSet
from mindspeed_llm.training.evaluation_callback import EvaluationNote

FILE_NAME = "generations.jsonl"
KIND = "generation"
PADDING = -1  # of token ids that are exchanged between ranks


class AnswersAtEvaluation:
    """Generates answers on the layout of the run, the prompts shared over the data-parallel ranks.

    The model is in eval mode and without gradients, and greedy decoding draws no random numbers, so the run is the same
    with and without it.

    Args:
        arguments: checked arguments of the run.
        prompts: the prompts, on rank 0; None on the other ranks, which receive the token ids from rank 0.
    """

    def __init__(self, arguments: PretrainArguments, prompts: PromptSet | None) -> None:
        self._prompts, self._arguments = prompts, arguments
        self._ids: list[list[int]] = []
        self._ends: tuple[int, ...] = ()

    def __call__(self, chunks: list[torch.nn.Module], device: torch.device, iteration: int) -> EvaluationNote | None:
        """Answer all prompts. Collective.

        Args:
            chunks: model chunks of this rank.
            device: device of this rank.
            iteration: number of updates so far.

        Returns:
            The answers, on rank 0; None on the other ranks.
        """
        start = time.perf_counter()
        if not self._ids:
            self._receive_prompts(device)
        replicas, replica = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        were_training = [chunk.training for chunk in chunks]
        for chunk in chunks:
            chunk.eval()
        with torch.no_grad():
            answers, passes = decode_greedily(chunks, device, self._ids[replica::replicas], self._limits)
        for chunk, was_training in zip(chunks, were_training, strict=True):
            chunk.train(was_training)
        collected = self._collect(answers, device)
        if self._prompts is None:
            return None
        return _note(self._prompts, collected, iteration, passes, time.perf_counter() - start)

    @property
    def _limits(self) -> DecodingLimits:
        arguments = self._arguments
        parallel = arguments.parallel
        return DecodingLimits(
            new_tokens=arguments.generation.generate_tokens,
            ends=self._ends,
            stream_slots=arguments.data.seq_length * arguments.training.micro_batch_size,
            virtual_tokens=arguments.virtual_tokens,
            slot_multiple=parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1,
        )

    def _receive_prompts(self, device: torch.device) -> None:
        """Send the token ids of the prompts and the ids that end an answer from rank 0 to all ranks."""
        own = [] if self._prompts is None else [list(self._prompts.ends), *self._prompts.ids]
        sizes = torch.tensor([len(own), max(map(len, own), default=0)], dtype=torch.int64, device=device)
        torch.distributed.broadcast(sizes, src=0)
        rows, width = sizes.tolist()
        table = torch.full((rows, width), PADDING, dtype=torch.int64)
        for row, ids in enumerate(own):
            table[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        table = table.to(device)
        torch.distributed.broadcast(table, src=0)
        ends, *self._ids = _without_padding(table)
        self._ends = tuple(ends)

    def _collect(self, answers: Sequence[Sequence[int]], device: torch.device) -> list[list[int]]:
        """Return the answers to all prompts [tokens] in the order of the file, from those of each replica."""
        replicas = parallel_state.get_data_parallel_world_size()
        if replicas == 1:
            return [list(answer) for answer in answers]
        per_replica = -(-len(self._ids) // replicas)
        table = torch.full((per_replica, self._limits.new_tokens), PADDING, dtype=torch.int64)
        for row, answer in enumerate(answers):
            table[row, : len(answer)] = torch.tensor(answer, dtype=torch.int64)
        table = table.to(device)
        tables = [torch.empty_like(table) for _ in range(replicas)]
        torch.distributed.all_gather(tables, table, group=parallel_state.get_data_parallel_group())
        rows = [_without_padding(one) for one in tables]
        return [rows[number % replicas][number // replicas] for number in range(len(self._ids))]


def _without_padding(table: torch.Tensor) -> list[list[int]]:
    """Return the rows of padded token ids, int64 [rows, width], as lists [tokens]."""
    return [[token for token in row if token != PADDING] for row in table.tolist()]


def _note(
    prompts: PromptSet, answers: Sequence[Sequence[int]], iteration: int, passes: int, seconds: float
) -> EvaluationNote:
    """Return the answers as lines of the run directory, the figures of metrics.jsonl and the log line."""
    lines: list[dict[str, Any]] = []
    for prompt, ids in zip(prompts.prompts, answers, strict=True):
        text, stopped = prompts.text_of(ids)
        lines.append(
            {
                "iteration": iteration,
                "line": prompt.line,
                "prompt" if isinstance(prompt.content, str) else "messages": prompt.content,
                **({} if prompt.answer is None else {"answer": prompt.answer}),
                "output": text,
                "tokens": len(ids),
                "stopped": stopped,
                "exact": _is_exact(prompt, text, stopped),
            }
        )
    scored = [line["exact"] for line in lines if line["exact"] is not None]
    tokens = sum(map(len, answers))
    values: dict[str, Any] = {
        "iteration": iteration,
        "prompts": len(lines),
        "answers": len(scored),
        "exact": sum(scored),
        "tokens": tokens,
        "passes": passes,
        "seconds": seconds,
    }
    score = f"{sum(scored)} of {len(scored)} answers exact | " if scored else ""
    log_line = (
        f"evaluation after iteration {iteration} | {len(lines)} prompts | {score}{tokens:,} tokens in {passes} forward "
        f"passes, {seconds:.2f} s, {seconds / passes:.3f} s a pass"
    )
    return EvaluationNote(KIND, values, log_line, FILE_NAME, lines)


def _is_exact(prompt: Prompt, text: str, stopped: bool) -> bool | None:
    """Return whether an answer ended by itself and is the expected one; None if no answer is expected."""
    # The white space around an answer belongs to the chat template.
    return None if prompt.answer is None else stopped and text.strip() == prompt.answer.strip()
