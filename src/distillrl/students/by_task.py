"""A head for each of several tasks on a trunk that they share (Actor-Mimic; Parisotto 2016, 1511.06342, section 3).

The latent [L] beside a constant 1 is multiplied by the one-hot number of the task: one linear layer on [K · (L + 1)] is then K heads, of
which the task's own is read. All of them count as parameters. A head that chooses among fewer actions than the largest is masked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from distillrl import tasks
from distillrl.records import Spec
from distillrl.students.networks import Network
from distillrl.tasks import TASK


def with_heads(policy: Any, spec: Spec) -> Any:
    """The network with a head for each task, all alike at first; itself where there is one task, it can't see which, or it is no network."""
    if not spec.tasks or not isinstance(policy, Network) or TASK not in policy.sense.groups or not isinstance(policy.out, nn.Linear):
        return policy
    count, plain = len(spec.tasks), policy.out
    wide = nn.utils.skip_init(nn.Linear, count * (plain.in_features + 1), plain.out_features)
    with torch.no_grad():
        own = torch.cat([plain.weight, torch.zeros(plain.out_features, 1)], 1)
        wide.weight.copy_(own.repeat(1, count))
        wide.bias.copy_(plain.bias)
    policy.out, policy.heads = wide, count
    if policy.log_std is not None:
        policy.log_std = nn.Parameter(policy.log_std.detach().repeat(count, 1))
    legal = tasks.legal(spec)
    policy.legal = None if legal is None else torch.from_numpy(legal)
    return policy

