"""Plan a job without running it (--dry-run): build every rank on the meta device of PyTorch.

Tensors on the meta device have shapes and no memory. Importing this package imports neither torch nor megatron-core.
`build_job_plan` applies the patches for the meta device, so a process that builds a plan cannot train.
"""

from mindspeed_llm.dry_run.activation_memory import ActivationMemory, PipelineStage, SavedByOps
from mindspeed_llm.dry_run.job_plan import build_job_plan
from mindspeed_llm.dry_run.plan_report import print_plan

__all__ = ["ActivationMemory", "PipelineStage", "SavedByOps", "build_job_plan", "print_plan"]
