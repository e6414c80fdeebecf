"""The reference: the same model in transformers, with peft for an adapter, one sample at a time in one process."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mindspeed_llm.conversion import AdapterCatalogue, TensorCatalogue
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.verify.block_sums import norm_of
from mindspeed_llm.verify.layer_taps import epsilon_of, recorded_taps, taps_of
from mindspeed_llm.verify.recording import PROBED_SLOTS, Recording, digest_of
from mindspeed_llm.verify.samples import Sample

logger = logging.getLogger(__name__)

PEFT = "base_model.model."


@dataclass(frozen=True)
class ReferenceFolder:
    """Where the reference is loaded from.

    Attributes:
        model: Hugging Face folder of the complete model, or of the base model of `adapter`.
        adapter: peft folder; None without an adapter.
    """

    model: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class Step:
    """What the loss of the first step depends on beside the samples.

    Attributes:
        normalization: value of --loss-normalization.
        micro_batch_size: packs of a micro-batch.
    """

    normalization: str
    micro_batch_size: int

    def weights(self, samples: Sequence[Sample]) -> dict[int, float]:
        """Return the factor of the summed loss of each sample that has trained tokens, by its number."""
        trained = {sample.number: len(sample.targets) for sample in samples if len(sample.targets)}
        if self.normalization == "sample":
            return {number: 1 / (count * len(trained)) for number, count in trained.items()}
        if self.normalization == "token":
            return dict.fromkeys(trained, 1 / sum(trained.values())) if trained else {}
        group = {sample.number: sample.pack // self.micro_batch_size for sample in samples}
        groups = {group[number] for number in trained}
        sums = {one: sum(count for number, count in trained.items() if group[number] == one) for one in groups}
        return {number: 1 / (sums[group[number]] * len(groups)) for number in trained}


class Reference:
    """A model of transformers whose results are recorded.

    Args:
        folder: what to load.
        dtype: dtype of the weights.
        device: device of the model.

    Raises:
        CheckpointError: transformers or peft cannot load the folder.
    """

    def __init__(self, folder: ReferenceFolder, dtype: torch.dtype, device: torch.device) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        self.device = device
        model: Any
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder.model,
                dtype=dtype,
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            model, info = loaded
            if folder.adapter is not None:
                import peft

                model = peft.PeftModel.from_pretrained(model, folder.adapter, is_trainable=True)
                # Its weights have the type of the model here, too. The rotary frequencies of the model stay in float32.
                for parameter in model.parameters():
                    parameter.data = parameter.data.to(dtype)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            where = folder.adapter or folder.model
            reason = " ".join(str(error).split())[:400]
            raise CheckpointError(f"{where}: transformers cannot load it: {reason}") from error
        self.model: Any = model.to(device)
        self.is_adapter = folder.adapter is not None
        _switch_off_dropout(self.model)
        self.base: Any = self.model.get_base_model() if self.is_adapter else self.model
        # What the folder promises: transformers 5 does not tie weights that differ in the files, older versions do.
        self.tied = bool(self.base.config.tie_word_embeddings)
        self.missing = tuple(sorted(str(name) for name in info["missing_keys"]))
        embedding = self.base.get_input_embeddings()
        # torch gives this row of the embedding no gradient. Where it is a token of the data, such as the end token,
        # transformers does not train it as input, and this project does: the user is told, and both are compared alike.
        self.untrained_row: int | None = embedding.padding_idx
        embedding.padding_idx = None

    def release(self) -> None:
        """Drop the model, so that its memory can be used again."""
        self.model = self.base = None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters with the names of the tensor tables; a tied output layer has no name of its own."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if not self.is_adapter:
                found[name] = parameter
            elif ".lora_" in name:
                found[name.replace(".default.", ".")] = parameter
            else:
                found[name.removeprefix(PEFT).replace(".base_layer.", ".")] = parameter
        return found

    def record(
        self,
        samples: Sequence[Sample],
        step: Step,
        catalogue: TensorCatalogue,
        adapter: AdapterCatalogue | None,
        into: Recording,
    ) -> None:
        """Run all samples forward, then backward with the loss of the first step.

        Args:
            samples: the samples of the first global batch.
            step: how their losses are weighted.
            catalogue: tensors of the model, which name the taps.
            adapter: tensors of the adapter; None without one.
            into: receives the results.
        """
        self._record_settings(catalogue, into)
        self.model.eval()
        with torch.no_grad():
            self._record_forward(samples, catalogue, into)
        into.digests = {name: digest_of(parameter) for name, parameter in self.parameters().items()}
        self._record_step(samples, step, into)
        self._record_gradients(adapter, into)

    def _record_settings(self, catalogue: TensorCatalogue, into: Recording) -> None:
        """Record rotary frequencies, epsilons, missing weights and whether the embeddings are tied."""
        modules = dict(self.base.named_modules())
        into.tied, into.missing = self.tied, self.missing
        for name, buffer in self.base.named_buffers():
            if name.endswith("rotary_emb.inv_freq"):
                into.frequencies = buffer.double().cpu()
        for tap in taps_of(catalogue):
            epsilon = epsilon_of(modules[tap.theirs]) if tap.theirs in modules else None
            if epsilon is not None and not tap.is_input:
                into.epsilons[tap.name] = epsilon

    def _record_forward(self, samples: Sequence[Sample], catalogue: TensorCatalogue, into: Recording) -> None:
        taps, modules = taps_of(catalogue), dict(self.base.named_modules())
        hidden: dict[str, list[torch.Tensor]] = {tap.name: [] for tap in taps}
        for sample in samples:
            kept = min(PROBED_SLOTS - sample.start, len(sample.ids)) if sample.pack == 0 else 0

            def keep(name: str, value: torch.Tensor, kept: int = kept) -> None:
                hidden[name].append(value[0, :kept].cpu())

            with recorded_taps(modules, taps if kept > 0 else [], "theirs", keep):
                logits = self.model(self._ids(sample), use_cache=False).logits[0]
            into.tensors.put(f"logits/alone/{sample.number}", logits)
            if len(sample.targets):
                rows = logits[torch.from_numpy(sample.predicting).to(self.device)]
                into.losses["alone"][sample.number] = float(_summed_loss(rows, sample)) / len(sample.targets)
        for name, values in hidden.items():
            if values:
                into.tensors.put(f"hidden/alone/{name}", torch.cat(values))

    def _record_step(self, samples: Sequence[Sample], step: Step, into: Recording) -> None:
        """Accumulate the gradient sample by sample, with recomputed activations."""
        self.model.train()
        # The older name is that of transformers before version 5.23.
        recompute = getattr(self.base, "activation_checkpointing_enable", self.base.gradient_checkpointing_enable)
        recompute({"use_reentrant": False})
        keeps_rows = "logits_to_keep" in inspect.signature(self.base.forward).parameters
        total = 0.0
        for number, weight in step.weights(samples).items():
            sample = samples[number]
            rows = torch.from_numpy(sample.predicting).to(self.device)
            if keeps_rows:
                logits = self.model(self._ids(sample), use_cache=False, logits_to_keep=rows).logits[0]
            else:
                logits = self.model(self._ids(sample), use_cache=False).logits[0, rows]
            loss = _summed_loss(logits, sample)
            (loss * weight).backward()
            total += float(loss.detach()) * weight
        into.step_loss = total

    def _record_gradients(self, adapter: AdapterCatalogue | None, into: Recording) -> None:
        """Record the gradient of every trained parameter, and its norm. Equal copies are one parameter."""
        gradients = {name: p.grad for name, p in self.parameters().items() if p.requires_grad and p.grad is not None}
        for tensor in adapter.tensors if adapter is not None else ():
            if tensor.form == "copies":
                first, *others = (name for name, _ in tensor.parts)
                gradients[first] = gradients[first] + sum(gradients.pop(name) for name in others)
        squares = 0.0
        for name, gradient in gradients.items():
            squares += norm_of(gradient) ** 2
            into.tensors.put(f"gradient/{name}", gradient)
        into.gradient_norm = math.sqrt(squares)

    def _ids(self, sample: Sample) -> torch.Tensor:
        """Return the token ids [1, tokens] on the device."""
        return torch.from_numpy(sample.ids)[None].to(self.device)


def _summed_loss(logits: torch.Tensor, sample: Sample) -> torch.Tensor:
    """Return the summed cross entropy [] of logits [trained tokens, vocabulary], at least in float32."""
    targets = torch.from_numpy(sample.targets).to(logits.device)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(wide, targets, reduction="sum")


def _switch_off_dropout(model: torch.nn.Module) -> None:
    """Set every probability of dropout to 0: the model is in training mode for its gradient."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
