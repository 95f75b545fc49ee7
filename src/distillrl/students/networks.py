"""Networks: a sense, a body of named layers, an output and a head. Students are made so, and converted teachers too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import FORBIDDEN, HEADS, Head
from distillrl.errors import Misconfigured, nearest
from distillrl.policies import ACTION, Memory, flatten
from distillrl.records import Prediction, Spec
from distillrl.senses import Sense
from distillrl.students import compact
from distillrl.tasks import TASK

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
}
MAX_UNITS = 1 << 16


class Network(nn.Module):
    """A policy made of torch layers.

    ``body``: named layers from the flattened sense [..., F] to the latent [..., L]. ``out``: latent → raw [..., size].
    ``log_std``: [A] free; or a Linear of the latent (SAC); or, with ``sde``, [L, A] (gSDE, Raffin 2021: the variance is
    latent² · exp(log_std)²). ``value``: a module from the flattened sense to [..., 1]. ``greedy`` heads read Q-values.
    ``recurrent``: a module with memory between sense and body: ``init(n)`` gives its memory {name: [n, ...]}, and it maps
    (x [n, F], memory, starts) to ([n, H], memory). ``value`` may be one too; ``value_reads`` is sense, or recurrent
    where it reads what the recurrent module gives.
    ``training_heads``: heads on the latent that exist only while learning (value, q); cut off in the artifact.
    """

    def __init__(
        self,
        spec: Spec,
        sense: Sense,
        body: nn.Sequential,
        out: nn.Module,
        head: Head,
        *,
        log_std: Tensor | nn.Module | None = None,
        sde: bool = False,
        log_std_bounds: tuple[float, float] = (-20.0, 2.0),
        value: nn.Module | None = None,
        quantiles: int = 0,
        recurrent: nn.Module | None = None,
        value_reads: str = "sense",
        family: str = "",
        info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.sense, self.body, self.out, self.head = spec, sense, body, out, head
        self.log_std_layer = log_std if isinstance(log_std, nn.Module) else None
        self.log_std = nn.Parameter(log_std.clone()) if isinstance(log_std, Tensor) else None
        self.sde, self.log_std_bounds = sde, log_std_bounds
        self.value, self.quantiles, self.family = value, quantiles, family
        self.recurrent, self.value_reads = recurrent, value_reads
        self.remembering = tuple(name for name, part in (("recurrent", recurrent), ("value", value)) if hasattr(part, "init"))
        self.training_heads = nn.ModuleDict()
        self.heads = 0
        self.legal: Tensor | None = None
        """Heads, one for each of several tasks (students/by_task.py), and [K, A] which actions each has, where not all have all."""
        self.info: dict[str, Any] = dict(info or {})
        self.compact: compact.Compact | None = None
        """How its tensors are held in fewer bytes, where they are."""

    @property
    def gives(self) -> frozenset[str]:
        """What it can be asked for."""
        known = {"action"} | {f"features.{name}" for name, _ in self.body.named_children()}
        if self.head.kind == "greedy":
            known.add("q")
        elif self.head.kind not in {"deterministic", "tanh", "scores"}:
            known.add("distribution")
        if self.recurrent is not None:
            known.add("features.memory")
        if self.quantiles:
            known.add("quantiles")
        if self.value is not None:
            known.add("value")
        return frozenset(known | set(self.training_heads))

    def init(self, n: int) -> Memory:
        """The memory of the sense, and of the recurrent parts where there are any."""
        memory = self.sense.init(n)
        for name in self.remembering:
            memory |= {f"{name}.{k}": v for k, v in getattr(self, name).init(n).items()}
        return memory

    def _recall(self, x: Tensor, memory: Memory, starts: Tensor | None) -> tuple[dict[str, Tensor], Memory]:
        """What each recurrent part gives, and the memory after it."""
        given: dict[str, Tensor] = {}
        for name in self.remembering:
            own = {k.removeprefix(f"{name}."): v for k, v in memory.items() if k.startswith(f"{name}.")}
            given[name], own = getattr(self, name)(x, own, starts)
            memory = {**memory, **{f"{name}.{k}": v for k, v in own.items()}}
        return given, memory

    def act(
        self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION
    ) -> tuple[Prediction, Memory]:
        """See Policy.act."""
        groups, memory = self.sense.forward(obs, memory, starts)
        x = flatten(groups, self.sense.groups)
        latent, features = x, {}
        recalled: dict[str, Tensor] = {}
        if self.remembering:
            recalled, memory = self._recall(x, memory, starts)
        if "recurrent" in recalled:
            latent = recalled["recurrent"]
            if "features.memory" in wants:
                features["memory"] = latent
        before_body = latent
        if wants is not ACTION and any(w.startswith("features.") for w in wants):
            for name, layer in self.body._modules.items():
                latent = layer(latent)
                if f"features.{name}" in wants:
                    features[name] = latent
        else:
            for layer in self.body._modules.values():
                latent = _through(layer, latent)
        mask, shared = None, latent
        if self.heads:
            latent, mask = self._by_task(latent, groups[TASK])
        raw = _through(self.out, latent)
        q = quantiles = None
        if self.quantiles:
            quantiles = raw.unflatten(-1, (self.quantiles, -1)).transpose(-1, -2)
            raw = quantiles.mean(-1)
        raw = raw if mask is None else raw.masked_fill(~mask, FORBIDDEN)
        if self.head.kind == "greedy":
            q = raw
        log_std = self._log_std(latent) if not self.heads or self.log_std is None else groups[TASK] @ self.log_std
        action = self.head.decode(raw, log_std, mask)
        value = None
        if self.value is not None and "value" in wants:
            value = (recalled["value"] if "value" in recalled else self.value(before_body if self.value_reads == "recurrent" else x)).squeeze(-1)
        if len(self.training_heads):
            trained = {name: head(latent) for name, head in self.training_heads.items() if name in wants and name != "column"}
            if "column" in wants:  # Distral's, on the trunk alone (columns.py)
                features["column"] = self.training_heads["column"](shared, obs[TASK])
            value = trained["value"].squeeze(-1) if "value" in trained else value
            q = trained.get("q", q)
            quantiles = trained.get("quantiles", quantiles)
        return Prediction(action, q=q, quantiles=quantiles, value=value, features=features), memory

    def _by_task(self, latent: Tensor, task: Tensor) -> tuple[Tensor, Tensor | None]:
        """The latent [..., L] in the place of its task's head, [..., K · (L + 1)], and the task's legal actions; ``task`` is one-hot [..., K]."""
        one = torch.ones((*latent.shape[:-1], 1), dtype=latent.dtype, device=latent.device)
        placed = (task.unsqueeze(-1) * torch.cat([latent, one], -1).unsqueeze(-2)).flatten(-2)
        return placed, None if self.legal is None else (task @ self.legal.to(task)) > 0.5

    def _log_std(self, latent: Tensor) -> Tensor | None:
        if self.log_std_layer is not None:
            return self.log_std_layer(latent).clamp(*self.log_std_bounds)
        if self.sde:
            assert self.log_std is not None
            return 0.5 * (latent.square() @ self.log_std.exp().square() + 1e-6).log()
        return self.log_std

    def acting_parameters(self) -> int:
        """Parameters from observation to most likely action: no critic, no spread, no training head, no zero that is left out."""
        if self.compact is not None:
            return compact.count(self, ("recurrent.", "body.", "out."))
        return sum(p.numel() for module in (self.recurrent, self.body, self.out) if module is not None for p in module.parameters())

    def header(self) -> dict[str, Any]:
        """What ``build`` needs beside the tensors; plain JSON."""
        held = {} if self.compact is None else self.compact.to_json()
        return {"family": self.family, "spec": self.spec.to_json(), "sense": self.sense.to_json(), "head": self.head.kind, **held}

    def artifact_tensors(self) -> dict[str, Tensor]:
        """The tensors that an artifact keeps: no critic and no training head."""
        left_out = ("value.", "training_heads.")
        own = self.state_dict() if self.compact is None else compact.plain_tensors(self)
        return {k: v.detach().cpu().contiguous() for k, v in own.items() if not k.startswith(left_out)}

    def to(self, *args: Any, **kwargs: Any) -> Network:
        """Move it, the head's bounds too."""
        moved = super().to(*args, **kwargs)
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is not None:
            moved.head = moved.head.to(device)
        return moved


def _through(layer: nn.Module | None, x: Tensor) -> Tensor:
    """``layer(x)``, without the module's call where it is plain: at one state that costs as much as the layer."""
    kind = type(layer)
    if kind is nn.Linear and not layer._forward_hooks:  # type: ignore[union-attr]  # a Linear
        own = layer._parameters  # type: ignore[union-attr]  # a Linear
        return nn.functional.linear(x, own["weight"], own["bias"])  # type: ignore[arg-type]  # a Linear has a weight
    if kind is nn.Tanh:
        return torch.tanh(x)
    if kind is nn.ReLU:
        return torch.relu(x)
    if kind is nn.SiLU:
        return nn.functional.silu(x)
    if kind is nn.Sequential and not layer._forward_hooks:  # type: ignore[union-attr]  # a Sequential
        for part in layer._modules.values():  # type: ignore[union-attr]  # a Sequential
            x = _through(part, x)
        return x
    return layer(x)  # type: ignore[misc]  # a body holds no empty places


def parse_mlp(text: str) -> tuple[tuple[int, ...], str]:
    """``16x16`` → ((16, 16), 'tanh'); ``64x64:relu``; an empty text is a linear policy. Raises Misconfigured."""
    sizes_text, _, activation = text.partition(":")
    activation = activation or "tanh"
    if activation not in ACTIVATIONS:
        raise Misconfigured(f"student mlp:{text}: unknown activation {activation!r}{nearest(activation, ACTIVATIONS)}")
    if not sizes_text:
        return (), activation
    try:
        sizes = tuple(int(s) for s in sizes_text.split("x"))
    except ValueError:
        raise Misconfigured(f"student mlp:{text}: {sizes_text!r} was given; hidden sizes such as 16x16 are right") from None
    if any(not 0 < s <= MAX_UNITS for s in sizes) or len(sizes) > 64:
        raise Misconfigured(f"student mlp:{text}: each hidden size must lie between 1 and {MAX_UNITS}")
    return sizes, activation


def make_mlp(text: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Network:
    """An untrained student for a spec, initialised from ``generator``; orthogonal, the output small, as PPO's."""
    sizes, activation = parse_mlp(text)
    network = _mlp(sizes, activation, spec, sense, head_kind or HEADS[spec.action.kind], f"mlp:{text}")
    initialise(network, generator)
    return network


def initialise(network: Network, generator: torch.Generator) -> None:
    """Orthogonal linear layers and convolutions, the output small, as PPO's."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            _orthogonal_(layer.weight, 1.0 if layer is network.out else math.sqrt(2), generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def build_mlp(text: str, spec: Spec, header: Mapping[str, Any]) -> Network:
    """The network of an artifact's header, its tensors not yet loaded."""
    sizes, activation = parse_mlp(text)
    return _mlp(sizes, activation, spec, Sense.from_json(spec.observations, header["sense"]), str(header["head"]), f"mlp:{text}")


def _mlp(sizes: tuple[int, ...], activation: str, spec: Spec, sense: Sense, head_kind: str, family: str) -> Network:
    width = sum(max(1, math.prod(g.shape)) for g in sense.groups.values())
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.utils.skip_init(nn.Linear, width, size), ACTIVATIONS[activation]()]
        width = size
    head = Head.of(head_kind, spec.action)
    log_std = torch.full((spec.action.dimensions,), -1.0) if head.has_log_std else None
    return Network(spec, sense, nn.Sequential(*layers), nn.utils.skip_init(nn.Linear, width, spec.action.size), head, log_std=log_std, family=family)


def _orthogonal_(weight: Tensor, gain: float, generator: torch.Generator) -> None:
    rows, columns = len(weight), weight[0].numel()
    noise = torch.randn(max(rows, columns), min(rows, columns), generator=generator)
    q, r = torch.linalg.qr(noise)
    q *= r.diagonal().sign()
    with torch.no_grad():
        weight.copy_(((q if rows >= columns else q.T) * gain).view_as(weight))
