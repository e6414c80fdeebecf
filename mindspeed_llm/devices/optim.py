"""AdamW with the interface of Apex's FusedAdam, on PyTorch's fused kernel.

megatron-core keeps Adam's step count in the parameter group, as Apex does, and saves it there. PyTorch's AdamW keeps a
step tensor for each parameter, which megatron-core's distributed optimizer restores incorrectly. This class has the
interface of Apex and calls torch._fused_adamw_, which has CPU, CUDA and Ascend kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class FusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2).

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay rates of the running averages of the gradient and its square.
        eps: term added to the denominator.
        weight_decay: coefficient of the decoupled weight decay.
        adam_w_mode: must be True. False (L2 regularization) is not implemented.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay is implemented"
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: must be None.
        """
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            # In the group and not in the state of the parameters: megatron-core saves and restores it there. Groups
            # without parameters count too, because the ranks save one number for each group.
            group["step"] = group.get("step", 0) + 1
            params = [param for param in group["params"] if param.grad is not None and param.numel() > 0]
            if not params:
                continue
            for param in params:
                self.initialize_state(param)
            torch._fused_adamw_(
                params,
                [param.grad for param in params],
                [self.state[param]["exp_avg"] for param in params],
                [self.state[param]["exp_avg_sq"] for param in params],
                [],
                # The kernel only reads the step of each parameter, so that all of them can share one tensor.
                [torch.tensor(float(group["step"]), device=params[0].device)] * len(params),
                lr=float(group["lr"]),
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def initialize_state(self, param: torch.Tensor) -> None:
        """Set the running averages of a parameter to zero if it has none.

        Args:
            param: parameter [...]; its averages have the same shape and dtype.
        """
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
