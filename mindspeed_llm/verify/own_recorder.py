"""Run the model of this project on its parallel layout, and record what it computes on rank 0.

Forward passes use the model without wrappers, because gradient buffers would double its memory. Then the first step
runs through DistributedDataParallel and the pipeline schedule, as in training, with gradients in the type of the
weights and without an optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import Float16Module, param_is_not_shared
from megatron.core.utils import unwrap_model

from mindspeed_llm.boundaries import IGNORE_INDEX, position_ids, shift_labels
from mindspeed_llm.data import MicroBatch, PackedDataLoader, loss_weights
from mindspeed_llm.model import PackedBoundaries, TrainedSlots
from mindspeed_llm.training.model_and_optimizer import wrap_chunks
from mindspeed_llm.training.train_step import forward_backward, reduce_totals
from mindspeed_llm.verify.block_sums import norm_of
from mindspeed_llm.verify.layer_taps import epsilon_of, recorded_taps, taps_of
from mindspeed_llm.verify.own_model import OwnModel
from mindspeed_llm.verify.rank_zero_tensors import full_tensors, send_to_rank_zero
from mindspeed_llm.verify.recording import PROBED_SLOTS, Recording, Way, digest_of
from mindspeed_llm.verify.samples import Sample


class OwnRecorder:
    """Records the model of this project. Collective, as all its methods are.

    Args:
        model: the loaded model.
        into: receives the results, on rank 0.
    """

    def __init__(self, model: OwnModel, into: Recording) -> None:
        self.model, self.into = model, into
        self._device = model.device.torch_device
        self._is_rank_zero = torch.distributed.get_rank() == 0
        self._taps, self._modules = taps_of(model.catalogue), model.modules
        is_half = model.config.bf16
        self._chunks: list[torch.nn.Module] = [
            Float16Module(model.config, chunk) if is_half else chunk for chunk in model.bare
        ]
        self._exchange_places()

    def _exchange_places(self) -> None:
        """Find the ranks of the last stage, in the order of the tensor-parallel ranks, and the rank of each tap."""
        is_last = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        own: tuple[int, bool, list[str]] | None = None
        if parallel_state.get_data_parallel_rank() == 0:
            names = [tap.name for tap in self._taps if tap.own in self._modules]
            own = (parallel_state.get_tensor_model_parallel_rank(), is_last, names)
        every: list[tuple[int, bool, list[str]] | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(every, own)
        found = [(rank, *one) for rank, one in enumerate(every) if one is not None]
        last = sorted((number, rank) for rank, number, is_last, _ in found if is_last)
        self._last_stage = [rank for _, rank in last]
        self._tap_owner = {name: rank for rank, number, _, names in found if number == 0 for name in names}

    def record(self, loader: PackedDataLoader, samples: Sequence[Sample]) -> None:
        """Run forward passes and the first step; gradients take memory afterwards.

        Args:
            loader: dataloader of this rank; its first global batch is the first step.
            samples: the samples of that batch, which gives the slots to record.
        """
        self._record_settings()
        for chunk in self._chunks:
            chunk.eval()
        with torch.no_grad():
            self._record_forward(loader, samples)
            self._record_weights()
        self._record_step(list(loader.micro_batches(0)))

    def _record_settings(self) -> None:
        """Record rotary frequencies, epsilons and whether the embeddings are tied, as the modules have them."""
        bare, norms = self.model.bare, [tap for tap in self._taps if not tap.is_input]
        epsilons = {tap.name: epsilon_of(self._modules[tap.own]) for tap in norms if tap.own in self._modules}
        modules = [getattr(bare[0], name, None) for name in ("rotary_pos_emb", "npu_rotary")]
        rotary: Any = next((module for module in modules if module is not None), None)
        every: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(every, epsilons)
        self.into.epsilons = {name: value for one in every for name, value in one.items() if value is not None}
        self.into.frequencies = rotary.inv_freq.cpu().double() if rotary is not None else None
        self.into.tied = bool(bare[0].share_embeddings_and_output_weights)

    def _record_forward(self, loader: PackedDataLoader, samples: Sequence[Sample]) -> None:
        """Run every pack, and every sample alone: once for logits, once for losses, on every replica alike."""
        for pack in range(samples[-1].pack + 1):
            places = [(sample, sample.start) for sample in samples if sample.pack == pack]
            self._record_stream(loader.batch_of(np.array([pack])), places, "packed", is_probed=pack == 0)
        for sample in samples:
            is_probed = sample.pack == 0 and sample.start < PROBED_SLOTS
            self._record_stream(self._alone(sample), [(sample, 0)], "alone", is_probed)
        if self._is_rank_zero:
            self._join_hidden_states(samples)

    def _alone(self, sample: Sample) -> MicroBatch:
        """Return a stream of one sample; with sequence parallelism padded to a multiple of the ranks."""
        tokens, multiple = len(sample.ids), self.model.arguments.padding_multiple
        slots = -(-tokens // multiple) * multiple
        ends = (tokens,) if slots == tokens else (tokens, slots)
        ids = np.pad(sample.ids, (0, slots - tokens))
        labels = shift_labels(np.pad(sample.labels, (0, slots - tokens), constant_values=IGNORE_INDEX), ends)
        trained = labels != IGNORE_INDEX
        weights, count = loss_weights(labels, ends, "token")
        return MicroBatch(
            tokens=torch.from_numpy(ids)[None],
            labels=torch.from_numpy(labels * trained)[None],
            loss_weights=torch.from_numpy(weights)[None],
            loss_denominator=count,
            actual_seq_len=ends,
            positions=torch.from_numpy(position_ids(ends)),
            tokens_count=tokens,
            slots=slots,
            samples=1,
            trained_slots=np.flatnonzero(trained),
            sample_ids=(),
        )

    def _record_stream(self, batch: MicroBatch, places: list[tuple[Sample, int]], way: Way, is_probed: bool) -> None:
        """Record logits and losses of the samples of one stream, and its hidden states if it is probed.

        Args:
            batch: the stream.
            places: the samples in it with their first slots.
            way: 'packed' or 'alone'.
            is_probed: whether to record hidden states.
        """
        batch = batch.to(self._device)
        hidden: dict[str, torch.Tensor] = {}

        def keep(name: str, value: torch.Tensor) -> None:
            if self.model.config.sequence_parallel:
                value = gather_from_sequence_parallel_region(value)
            hidden[name] = value[:PROBED_SLOTS, 0].detach().clone()

        with recorded_taps(self._modules, self._taps if is_probed else [], "own", keep):
            logits = self._last_stage_output(batch, has_labels=False)
        full = self._gather_vocabulary(logits)
        losses = self._from_last_stage(self._last_stage_output(batch, has_labels=True))
        trained = None if batch.trained_slots is None else torch.from_numpy(batch.trained_slots).to(self._device)
        slots = self._from_last_stage(trained)
        for tap in self._taps if is_probed else ():
            value = send_to_rank_zero(hidden.get(tap.name), self._tap_owner[tap.name], self._device)
            if value is not None:
                self.into.tensors.put(f"stream/{way}/{places[0][0].number}/{tap.name}", value)
        if full is None or losses is None or slots is None:
            return
        for sample, start in places:
            end = start + len(sample.ids)
            # In 16 bits the values are those of the output layer, which the wrapper has converted to float32.
            logits_of_sample = full[start:end].to(self.model.config.params_dtype)
            self.into.tensors.put(f"logits/{way}/{sample.number}", logits_of_sample)
            inside = (slots >= start) & (slots < end)
            if inside.any():
                self.into.losses[way][sample.number] = float(losses[inside].double().mean())

    def _join_hidden_states(self, samples: Sequence[Sample]) -> None:
        """Put the hidden states of the probed slots of pack 0 together, from one stream or from one for each sample."""
        tensors = self.into.tensors
        probed = [sample for sample in samples if sample.pack == 0 and sample.start < PROBED_SLOTS]
        end = min(PROBED_SLOTS, probed[-1].end)
        for tap in self._taps:
            tensors.put(f"hidden/packed/{tap.name}", tensors.get(f"stream/packed/0/{tap.name}")[:end])
            alone = [tensors.get(f"stream/alone/{s.number}/{tap.name}")[: min(s.end, end) - s.start] for s in probed]
            tensors.put(f"hidden/alone/{tap.name}", torch.cat(alone))
        tensors.remove("stream/")

    def _last_stage_output(self, batch: MicroBatch, has_labels: bool) -> torch.Tensor | None:
        """Run one stream forward through all stages.

        Returns:
            On the last stage the logits of this tensor-parallel rank [T, columns], or with labels the losses of the
            trained slots [R]; None on the other stages.
        """

        def step(batches: Iterator[MicroBatch], chunk: torch.nn.Module) -> tuple[Any, Any]:
            own = next(batches)
            boundaries = PackedBoundaries(actual_seq_len=own.actual_seq_len, positions=own.positions)
            labels = None
            if has_labels and own.trained_slots is not None:
                assert own.labels is not None and own.loss_weights is not None
                labels = TrainedSlots(own.trained_slots, own.labels, own.loss_weights)
            output = chunk(own.tokens, own.positions[None, :], None, labels=labels, packed_seq_params=boundaries)
            return output, lambda output, non_loss_data: output

        # An interleaved pipeline needs as many micro-batches as stages.
        stages = parallel_state.get_virtual_pipeline_model_parallel_world_size()
        copies = 1 if stages is None else parallel_state.get_pipeline_model_parallel_world_size()
        outputs = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=[iter([batch] * copies) for _ in self._chunks],
            model=self._chunks,
            num_microbatches=copies,
            seq_length=batch.slots,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
        if not outputs:
            return None
        # With labels (weighted sum, losses); logits are [1, T, columns].
        result: torch.Tensor = outputs[0][1] if has_labels else outputs[0][0]
        return result

    def _gather_vocabulary(self, logits: torch.Tensor | None) -> torch.Tensor | None:
        """Return the logits [T, vocabulary] without padding on rank 0, from [T, columns] of each rank."""
        parts = [send_to_rank_zero(logits, owner, self._device) for owner in self._last_stage]
        if not self._is_rank_zero:
            return None
        rows = self.model.catalogue.config.vocab_size
        return torch.cat([part for part in parts if part is not None], dim=-1)[:, :rows]

    def _from_last_stage(self, value: torch.Tensor | None) -> torch.Tensor | None:
        """Return a tensor [R] of the last stage on rank 0, on the host."""
        received = send_to_rank_zero(value, self._last_stage[0], self._device)
        return None if received is None else received.cpu()

    def _record_weights(self) -> None:
        """Record a digest of each weight under its Hugging Face name."""
        for catalogue in (self.model.catalogue, self.model.adapter):
            if catalogue is None:
                continue
            for tensor, parts in full_tensors(self.model.bare, catalogue, lambda weight: weight.data, self._device):
                names = [name for name, _ in tensor.parts]
                self.into.digests.update(zip(names, map(digest_of, parts), strict=False))

    def _record_step(self, batches: list[MicroBatch]) -> None:
        """Run forward and backward over the first global batch; record loss, gradient norm and every gradient."""
        model, into = self.model, self.into
        chunks = wrap_chunks(model.arguments.parallel, model.config, model.bare, gradients_in_float32=False)
        model.config.finalize_model_grads_func = finalize_model_grads
        for chunk in chunks:
            chunk.train()
            chunk.zero_grad_buffer()  # type: ignore[operator]
        losses = forward_backward(chunks, batches, self._device, forward_only=False)
        totals, _ = reduce_totals([loss for loss, _ in losses], batches, self._device)
        into.step_loss = totals.mean_loss
        bare = list(unwrap_model(chunks))
        into.gradient_norm = self._gradient_norm(bare)
        catalogue = model.adapter if model.adapter is not None else model.catalogue
        for tensor, parts in full_tensors(bare, catalogue, _gradient, self._device):
            # Equal copies in Hugging Face's format are one parameter here.
            names = tensor.parts[:1] if tensor.form == "copies" else tensor.parts
            for (name, _), part in zip(names, parts, strict=False):
                into.tensors.put(f"gradient/{name}", part)

    def _gradient_norm(self, bare: list[torch.nn.Module]) -> float:
        """Return the norm over the parameters that the optimizer counts.

        The optimizer itself would need memory for a copy of the weights. It sums the squares in float32, which is
        less exact than the gradients are.
        """
        trained = [p for chunk in bare for p in chunk.parameters() if p.requires_grad]
        counted = [p for p in trained if param_is_not_shared(p) and param_is_not_tensor_parallel_duplicate(p)]
        sums_float64 = self.model.device.traits.sums_float64
        squares = sum(norm_of(_gradient(p) if sums_float64 else _gradient(p).cpu()) ** 2 for p in counted)
        dtype = torch.float64 if sums_float64 else torch.float32
        total = torch.tensor(squares, dtype=dtype).to(self._device)
        torch.distributed.all_reduce(total, group=parallel_state.get_model_parallel_group())
        return math.sqrt(float(total))


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return the gradient of a parameter [...], summed over micro-batches and replicas."""
    gradient: torch.Tensor = parameter.main_grad  # type: ignore[attr-defined]
    return gradient
