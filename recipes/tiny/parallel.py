"""Sharing one training run among processes: `torchrun --nproc-per-node 2 -m recipes.tiny.pretrain big`.

Each process computes its rows of every batch and the gradients are summed, so the result is that of one process up to
rounding. Models this small gain more from processes than from threads, which wait for each other at every operation.
"""

from __future__ import annotations

import os

import torch
from torch import distributed


def start() -> None:
    """Join the others if `torchrun` started this process."""
    if "RANK" in os.environ and not distributed.is_initialized():
        distributed.init_process_group("gloo")


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def add_up(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its sum over the processes."""
    if world() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
