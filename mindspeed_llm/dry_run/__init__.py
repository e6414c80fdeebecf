"""The dry run: the whole job built for every rank on torch's meta device, which has shapes and no memory.

Importing this package imports neither torch nor megatron-core; `build_job_plan` applies the patches for the meta
device, so a process that makes a plan cannot train.
"""

from mindspeed_llm.dry_run.activation_memory import ActivationMemory, PipelineStage, SavedByOps
from mindspeed_llm.dry_run.job_plan import build_job_plan
from mindspeed_llm.dry_run.plan_report import print_plan

__all__ = ["ActivationMemory", "PipelineStage", "SavedByOps", "build_job_plan", "print_plan"]
