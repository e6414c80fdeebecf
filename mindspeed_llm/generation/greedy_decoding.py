"""Decode greedily on the parallel layout of the training run, without a key-value cache.

Each step runs the unfinished sequences of this model replica forward as one or a few streams, in which every sequence
attends only to itself, and takes the best token after the last token of each:

    sequences   a0 a1 a2 | b0 b1              stream     a0 a1 a2 b0 b1 .  .     segments end at 3, 5, 7
                                              logits     of slots 2 and 4 only
    next step   a0 a1 a2 a3 | b0 b1 b2        stream     a0 a1 a2 a3 b0 b1 b2

A stream has at most as many slots as a micro-batch of the training run, so that generation needs less memory than a
training step and no buffer of megatron-core grows. The whole sequence is computed again for each token: n tokens after
a prompt of p tokens cost about n · (p + n / 2) slots, which is cheap for a few short prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from mindspeed_llm.boundaries import position_ids
from mindspeed_llm.model import AnswerSlots, PackedBoundaries, VirtualSlots


@dataclass(frozen=True)
class DecodingLimits:
    """Limits of a generation.

    Attributes:
        new_tokens: maximum number of tokens of an answer.
        ends: ids that end an answer.
        stream_slots: maximum number of slots of a stream; a single longer sequence is never given.
        slot_multiple: multiple of the slots of a stream: the tensor-parallel size under sequence parallelism.
        virtual_tokens: slots before each sequence for the virtual tokens of an adapter.
    """

    new_tokens: int
    ends: tuple[int, ...]
    stream_slots: int
    slot_multiple: int
    virtual_tokens: int = 0


@dataclass(frozen=True)
class Stream:
    """Sequences one after the other, and padding.

    Attributes:
        tokens: token ids, int64 [T].
        ends: end of each segment; the last is T.
        answer_slots: slot of the last token of each sequence, int64 [sequences].
        virtual_slots: slots of the virtual tokens, int64 [sequences · p]; None without.
    """

    tokens: np.ndarray
    ends: tuple[int, ...]
    answer_slots: np.ndarray
    virtual_slots: np.ndarray | None = None


def decode_greedily(
    chunks: list[torch.nn.Module], device: torch.device, prompts: Sequence[Sequence[int]], limits: DecodingLimits
) -> tuple[list[list[int]], int]:
    """Generate an answer to each prompt of this model replica. Collective in the replica; the model stays in eval mode.

    Args:
        chunks: model chunks of this rank, in eval mode.
        device: device of this rank.
        prompts: token ids, list [prompts] of [tokens]; the same on all ranks of the replica.
        limits: limits of the generation.

    Returns:
        The token ids of each answer [tokens], with their end token, on all ranks of the replica; and the number of
        forward passes.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    active, passes = list(range(len(prompts))), 0
    # At least one pass, also without prompts: with --overlap-param-gather the first pass after an update completes the
    # gathering of the weights, in which all data-parallel ranks take part.
    while active or passes == 0:
        reserved = [0] * limits.virtual_tokens  # not looked up: the adapter fills these slots
        sequences = [[*reserved, *prompts[number], *answers[number]] for number in active]
        tokens = _next_tokens(chunks, device, _streams(sequences, limits))
        passes += 1
        for number, token in zip(active, tokens, strict=True):
            answers[number].append(token)
        active = [
            number
            for number in active
            if answers[number][-1] not in limits.ends and len(answers[number]) < limits.new_tokens
        ]
    return answers, passes


def _streams(sequences: Sequence[Sequence[int]], limits: DecodingLimits) -> list[Stream]:
    """Divide sequences, in their order, into streams of equal length, as the pipeline schedules need them."""
    groups: list[list[Sequence[int]]] = [[]]
    room = limits.stream_slots
    for sequence in sequences:
        if len(sequence) > room and groups[-1]:
            groups.append([])
            room = limits.stream_slots
        groups[-1].append(sequence)
        room -= len(sequence)
    # An interleaved pipeline needs a multiple of its stages.
    if parallel_state.get_virtual_pipeline_model_parallel_world_size() is not None:
        groups += [[] for _ in range(-len(groups) % parallel_state.get_pipeline_model_parallel_world_size())]
    longest = max(1, *(sum(map(len, group)) for group in groups))
    slots = -(-longest // limits.slot_multiple) * limits.slot_multiple
    return [_stream(group, slots, limits.virtual_tokens) for group in groups]


def _stream(sequences: Sequence[Sequence[int]], slots: int, virtual_tokens: int) -> Stream:
    """Put sequences, which begin with `virtual_tokens` reserved slots, one after the other, padded to `slots`."""
    tokens = np.zeros(slots, np.int64)
    ends = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)
    if sequences:
        tokens[: ends[-1]] = np.concatenate([np.asarray(sequence, np.int64) for sequence in sequences])
    segments = [*ends.tolist(), *([slots] if not sequences or ends[-1] < slots else [])]
    starts = ends - [len(sequence) for sequence in sequences]
    reserved = (starts[:, None] + np.arange(virtual_tokens)).astype(np.int64).reshape(-1) if virtual_tokens else None
    return Stream(tokens, tuple(segments), ends - 1, reserved)


def _next_tokens(chunks: list[torch.nn.Module], device: torch.device, streams: Sequence[Stream]) -> list[int]:
    """Return the best next token of each sequence of all streams, on every rank of the replica. Collective in it."""
    outputs = get_forward_backward_func()(
        forward_step_func=_forward_step(device),
        data_iterator=[iter(streams) for _ in chunks],
        model=chunks,
        num_microbatches=len(streams),
        seq_length=len(streams[0].tokens),
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    count = sum(len(stream.answer_slots) for stream in streams)
    tokens = torch.zeros(count, dtype=torch.int64, device=device)
    if parallel_state.is_pipeline_last_stage(ignore_virtual=True) and count:
        tokens = _best_columns(torch.cat(outputs))
    if parallel_state.get_pipeline_model_parallel_world_size() > 1 and count:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        torch.distributed.broadcast(tokens, source, group=parallel_state.get_pipeline_model_parallel_group())
    return [int(token) for token in tokens.tolist()]


def _forward_step(device: torch.device) -> Callable[[Iterator[Stream], torch.nn.Module], tuple[Any, Any]]:
    """Return the function that runs one stream through one model chunk, as the schedules of megatron-core expect it."""

    def step(streams: Iterator[Stream], chunk: torch.nn.Module) -> tuple[Any, Any]:
        stream = next(streams)
        positions = position_ids(stream.ends)
        # Padding may be longer than the table of positions.
        used = int(stream.answer_slots[-1]) + 1 if len(stream.answer_slots) else 0
        positions[used:] = 0
        places = torch.from_numpy(positions).to(device)
        virtual = None if stream.virtual_slots is None else VirtualSlots(stream.virtual_slots, device)
        boundaries = PackedBoundaries(actual_seq_len=stream.ends, positions=places, virtual_slots=virtual)
        tokens = torch.from_numpy(stream.tokens).to(device)[None]
        output = chunk(
            tokens, places[None], None, labels=AnswerSlots(stream.answer_slots), packed_seq_params=boundaries
        )
        return output, lambda output, non_loss_data: output

    return step


def _best_columns(logits: torch.Tensor) -> torch.Tensor:
    """Return the token with the largest logit of each row, int64 [R]. Collective in the tensor-parallel group.

    Args:
        logits: [R, columns of this rank], without the padding of the vocabulary; a rank may have no column.
    """
    rows, columns = logits.shape
    values = logits.new_full((rows,), float("-inf"), dtype=torch.float32)
    tokens = torch.zeros(rows, dtype=torch.int64, device=logits.device)
    if columns:
        best = logits.float().max(dim=1)
        values, tokens = best.values, best.indices
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    if ranks == 1:
        return tokens
    group = parallel_state.get_tensor_model_parallel_group()
    # Ranks hold consecutive columns of equal number, but those of the padding are left out.
    counts = [torch.zeros(1, dtype=torch.int64, device=logits.device) for _ in range(ranks)]
    torch.distributed.all_gather(counts, torch.full_like(counts[0], columns), group=group)
    tokens = tokens + sum(int(count) for count in counts[: parallel_state.get_tensor_model_parallel_rank()])
    every_value = [torch.empty_like(values) for _ in range(ranks)]
    every_token = [torch.empty_like(tokens) for _ in range(ranks)]
    torch.distributed.all_gather(every_value, values.contiguous(), group=group)
    torch.distributed.all_gather(every_token, tokens.contiguous(), group=group)
    # The first of equal values, as in one process.
    owner = torch.stack(every_value).argmax(dim=0)
    return torch.stack(every_token).gather(0, owner[None])[0]
