"""A small student's update with its layers' gradients written out, in place of a recorded graph's: the same numbers, in about half the time.

For layers of 16 to 256 units most of an update is what torch does around the products: making tensors, modules' calls, the graph.
Here the layers go forward into buffers and backward by hand (Rumelhart 1986); only from the raw output to the loss, which may be any term
that reads nothing but the action, does autograd record. What the sense makes of a round's observations is worked out once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.filters import Choose, Clip, Quantise
from distillrl.normalising import Normalise
from distillrl.policies import ACTION, flatten
from distillrl.records import Prediction
from distillrl.senses import OneHot, Pick, Scale
from distillrl.students.networks import Network
from distillrl.wrapping import First

READS = ACTION | {"distribution"}
"""What of the student's knowledge a term may want."""
_STILL = (Pick, OneHot, Normalise, Scale, First, Choose, Clip, Quantise)
"""Steps of a sense that draw nothing and remember nothing: applied to all of a round's batches at once they give the same."""
_KINDS: Mapping[type[nn.Module], str] = {nn.Tanh: "tanh", nn.ReLU: "relu"}


class ByHand:
    """A student's layers [(weight, bias, activation)], its buffers for batches of ``batch`` states, and its update."""

    def __init__(self, student: Network, layers: list[tuple[nn.Linear, str]], batch: int) -> None:
        self.student, self.layers = student, layers
        self.values = [torch.empty(batch, layer.out_features) for layer, _ in layers]
        self.deltas = [torch.empty(batch, layer.in_features) for layer, _ in layers]
        for layer, _ in layers:
            layer.weight.grad, layer.bias.grad = torch.empty_like(layer.weight), torch.empty_like(layer.bias)
        self.apart = [student.log_std] if student.log_std is not None and student.log_std.requires_grad else []

    @torch.no_grad()
    def seen(self, obs: Mapping[str, Tensor]) -> Tensor:
        """[N, F] what the sense makes of observations."""
        groups, _ = self.student.sense.forward(obs, {}, None)
        return flatten(groups, self.student.sense.groups).contiguous()

    @torch.no_grad()
    def squared(self, x: Tensor, low: Tensor, high: Tensor, unit: Tensor, share: Tensor, weight: float) -> Tensor:
        """As ``step``, for ``weight`` · Σ share · mse: ``low``, ``high`` [B, A] and ``unit`` as ``objectives.policy.mse_targets`` gives them; the loss.

        ``share`` [B, 1] is each state's part of the batch.
        """
        raw = self._forward(x)
        apart = raw.sub(raw.clamp(low, high)).div_(unit)
        shared = apart * share
        loss = (apart * shared).sum() * weight
        for parameter in self.apart:
            parameter.grad = None
        self._backward(x, shared.mul_(2 * weight).div_(unit))
        return loss

    def step(self, x: Tensor, loss: Callable[[Prediction], Tensor]) -> None:
        """The gradients of ``loss`` of the batch x [B, F], into ``grad`` of each parameter."""
        raw = self._forward(x).requires_grad_()
        action = self.student.head.decode(raw, self.student.log_std)
        q = raw if self.student.head.kind == "greedy" else None
        outer, *others = torch.autograd.grad(loss(Prediction(action, q=q)), [raw, *self.apart], allow_unused=True)
        for parameter, grad in zip(self.apart, others, strict=True):
            parameter.grad = grad
        self._backward(x, torch.zeros_like(raw) if outer is None else outer)

    @torch.no_grad()
    def _forward(self, x: Tensor) -> Tensor:
        for (layer, kind), out in zip(self.layers, self.values, strict=True):
            torch.addmm(layer.bias, x, layer.weight.t(), out=out)
            x = out.tanh_() if kind == "tanh" else out.relu_() if kind == "relu" else out
        return x.detach()

    @torch.no_grad()
    def _backward(self, x: Tensor, delta: Tensor) -> None:
        for i in reversed(range(len(self.layers))):
            layer, before = self.layers[i][0], self.values[i - 1] if i else x
            torch.mm(delta.t(), before, out=layer.weight.grad)
            torch.sum(delta, 0, out=layer.bias.grad)
            if i:
                torch.mm(delta, layer.weight, out=self.deltas[i])
                delta = _through(self.deltas[i], before, self.layers[i - 1][1])


def _through(delta: Tensor, value: Tensor, kind: str) -> Tensor:
    """The gradient before an activation, in place, from the one behind it and what it gave."""
    if kind == "tanh":
        return torch.ops.aten.tanh_backward.grad_input(delta, value, grad_input=delta)
    if kind == "relu":
        return torch.ops.aten.threshold_backward.grad_input(delta, value, 0, grad_input=delta)
    return delta


def of(student: Any, wants: frozenset[str], batch: int) -> ByHand | None:
    """The student's update by hand, where it is a plain MLP on the CPU all of which learns, and its terms want no more than its action."""
    if type(student) is not Network or not wants <= READS or student.remembering or student.heads or len(student.training_heads) or student.quantiles:
        return None
    if student.compact is not None or student.sde or student.log_std_layer is not None or student.head.kind in {"scores"}:
        return None
    if any(type(step) not in _STILL or getattr(step, "running", False) for step in student.sense.steps):
        return None
    layers: list[tuple[nn.Linear, str]] = []
    for part in (*student.body.children(), student.out):
        if type(part) is nn.Linear and (not layers or layers[-1][1] or part is student.out):
            layers.append((part, ""))
        elif type(part) in _KINDS and layers and not layers[-1][1]:
            layers[-1] = (layers[-1][0], _KINDS[type(part)])
        else:
            return None
    return ByHand(student, layers, batch) if all(map(_plain, (layer for layer, _ in layers))) else None


def _plain(layer: nn.Linear) -> bool:
    """Whether a layer learns whole, in single precision on the CPU, and nothing listens to it."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    return not hooked and all(isinstance(p, Tensor) and p.requires_grad and p.dtype == torch.float32 and p.device.type == "cpu" for p in (layer.weight, layer.bias))
