"""Make the shares of several processes act as one batch, with BatchNorm statistics and gradients over all of them.

PyTorch's SyncBatchNorm needs CUDA, and DistributedDataParallel wraps the whole forward of a module, which renames the
keys of its state dict and cannot start at a boundary. This module also runs on the CPU, where it is tested.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tumorlens.training.world import World


class _Sum(torch.autograd.Function):
    """Sum over all ranks; its gradient is the sum of the gradients over all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.all_reduce(x.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.world.all_reduce(gradients[0].clone(memory_format=torch.contiguous_format)), None


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose batch statistics are computed over the images of all ranks; identical to it in eval mode.

    It shares the parameters and buffers of `norm`, so the optimiser and the state dict stay valid.

    Each rank contributes the mean, variance and count of its share. They are combined as in Chan, Golub and LeVeque
    ("Updating formulae and a pairwise algorithm for computing sample variances", 1982), in at least float32. Unlike a
    sum of squares, this loses no digits if the mean is large.
    """

    def __init__(self, norm: nn.BatchNorm2d, world: World) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, device=norm.weight.device)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.world = world
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise this rank's share.

        Parameters
        ----------
        x
            float [n, c, h, w], where n is this rank's number of images, at least 1; c, h and w are the same on all
            ranks.

        Returns
        -------
        Tensor
            Same shape and dtype as `x`.
        """
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)  # (c,) each
        count = mean.new_full((1,), x.numel() // x.shape[1])
        parts = mean.new_zeros(self.world.size, 2 * len(mean) + 1)
        parts[self.world.rank] = torch.cat([mean, variance, count])
        means, variances, counts = _Sum.apply(parts, self.world).split([len(mean), len(mean), 1], 1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)  # type: ignore[union-attr, arg-type]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shape = (1, -1, 1, 1)
        return torch.addcmul(self.bias.view(shape), values - mean.view(shape), scale.view(shape)).to(x.dtype)


def convert_batchnorm(model: nn.Module, world: World) -> None:
    """Replace every BatchNorm2d in a model with a SyncBatchNorm that shares its tensors."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SyncBatchNorm(child, world))


def all_reduce_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Sum the gradients over all ranks, in place, as one flat tensor.

    One message per step costs less than hooks that overlap many small messages with the backward pass: even `finetuned`
    has only 42 MB of gradients.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = world.all_reduce(torch.cat([g.flatten() for g in gradients]))
    parts = flat.split([g.numel() for g in gradients])  # type: ignore[no-untyped-call]
    for gradient, summed in zip(gradients, parts, strict=True):
        gradient.copy_(summed.view_as(gradient))
