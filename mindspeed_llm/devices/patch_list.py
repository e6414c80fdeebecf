"""The list of all patches.

The patches for the CPU are implemented in `cuda_emulation.py`, those of the optimizer in `optim.py` and
`bucket_padding.py`, and that of the checkpoint reader in `checkpoint_reader.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mindspeed_llm.devices import checkpoint_reader, cuda_emulation
from mindspeed_llm.devices.patch import MEGATRON_CORE, Patch

if TYPE_CHECKING:
    from mindspeed_llm.devices.device_traits import Kind

_HOST: frozenset[Kind] = frozenset({"cpu", "meta"})
_ALL: frozenset[Kind] = frozenset({"cpu", "meta", "cuda", "npu"})
_NEVER_CUDA: frozenset[Kind] = frozenset({"cpu", "meta", "npu"})
_DEVICE_NEUTRAL = "megatron-core uses a configurable device instead of the name 'cuda'"


def _use_fused_adam(_: Kind) -> None:
    """Let megatron-core use our FusedAdam if neither Apex nor TransformerEngine provides one."""
    import megatron.core.optimizer as optimizers
    from megatron.core.optimizer import distrib_optimizer

    if distrib_optimizer.HAVE_APEX_OR_TE:
        return
    from mindspeed_llm.devices.optim import FusedAdam

    # The flags are set when megatron-core is imported. They select its code for an optimizer with Apex's interface.
    optimizers.Adam = FusedAdam
    optimizers.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.Adam = FusedAdam
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True


def _read_state_without_padding(_: Kind) -> None:
    """Correct the offsets at which megatron-core reads the gathered state of the distributed optimizer."""
    from mindspeed_llm.devices import bucket_padding

    bucket_padding.correct_offsets()


def _use_ascend(_: Kind) -> None:
    """Let torch_npu redirect torch.cuda to the NPU."""
    import os
    import warnings

    # torch.distributed.broadcast (torch 2.13) reads the device capability and fails on the None of torch_npu.
    os.environ.setdefault("TORCH_NPU_DEVICE_CAPABILITY", "8.0")
    # Recorded, because on every rank it lists all its replacements in warnings that no filter suppresses.
    with warnings.catch_warnings(record=True):
        from torch_npu.contrib import transfer_to_npu  # noqa: F401


PATCHES: tuple[Patch, ...] = (
    Patch(
        target="torch.cuda",
        reason="megatron-core calls torch.cuda, whose functions torch_npu provides for the NPU",
        versions="torch_npu 2.7 to 2.13",
        remove_when=_DEVICE_NEUTRAL,
        kinds=frozenset({"npu"}),
        before_import=True,
        apply=_use_ascend,
    ),
    Patch(
        target="torch.cuda.{current_device, synchronize, manual_seed, get_rng_state, set_rng_state, "
        "default_generators, _lazy_call}",
        reason="megatron-core creates tensors on torch.cuda.current_device() and manages CUDA's RNG state; without a "
        "GPU it must use the CPU and its generator. _lazy_call is bound at import: without the patch seeds have no "
        "effect, and there is no error",
        versions=MEGATRON_CORE,
        remove_when=_DEVICE_NEUTRAL,
        kinds=_HOST,
        before_import=True,
        apply=cuda_emulation.emulate_cuda,
    ),
    Patch(
        target="the name `torch` in the megatron.core modules of cuda_emulation.MODULES_THAT_NAME_CUDA",
        reason="they create tensors with the literal device='cuda'",
        versions=MEGATRON_CORE,
        remove_when=_DEVICE_NEUTRAL,
        kinds=_HOST,
        before_import=False,
        apply=cuda_emulation.redirect_factories,
    ),
    Patch(
        target="torch.Tensor.type, torch.Tensor.cuda",
        reason="the optimizers compare tensor.type() with 'torch.cuda.FloatTensor' and move state with .cuda()",
        versions=MEGATRON_CORE,
        remove_when=_DEVICE_NEUTRAL,
        kinds=_NEVER_CUDA,
        before_import=True,
        apply=cuda_emulation.name_tensors_like_cuda,
    ),
    Patch(
        target="megatron.core.optimizer.Adam, megatron.core.optimizer.distrib_optimizer.Adam",
        reason="torch's AdamW with the distributed optimizer cannot be resumed: all parameters share one step tensor "
        "after loading, and the run continues with different results",
        versions=MEGATRON_CORE,
        remove_when="the distributed optimizer restores torch's AdamW exactly",
        kinds=_ALL,
        before_import=False,
        apply=_use_fused_adam,
    ),
    Patch(
        target="megatron.core.optimizer.distrib_optimizer.DistributedOptimizer.sharded_param_state_fully_reshardable",
        reason="it reads the gathered state, which has no padding between buckets, at offsets that include the "
        "padding: with several buckets a checkpoint contains the state of other parameters, and zeros at the end",
        versions=MEGATRON_CORE,
        remove_when="megatron-core contains Megatron-LM pull request 5077",
        kinds=_ALL,
        before_import=False,
        apply=_read_state_without_padding,
    ),
    Patch(
        target="megatron.core.dist_checkpointing.strategies.torch._get_filesystem_reader",
        reason="it creates a reader that unpickles the checkpoint's .metadata and runs any code in it, although the "
        "file was read and checked before. The load strategy creates its reader itself and accepts no other",
        versions=MEGATRON_CORE,
        remove_when="the load strategy accepts a reader, or an index that was read before",
        kinds=_ALL,
        before_import=False,
        apply=checkpoint_reader.use_opened_reader,
    ),
)
