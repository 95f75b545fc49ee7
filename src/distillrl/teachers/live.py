"""Teachers that are objects in memory: an ``nn.Module``, a plain function, a loaded stable-baselines3 model.

**What a module or function is called with.** A batch of ``n`` observations: one array [n, *shape] where the environment
has one observation group, a dict {name: [n, *shape]} where it has several. An ``nn.Module`` gets torch tensors (float64
as float32). A function gets what its first parameter is annotated with (``np.ndarray`` or ``torch.Tensor``); where it
isn't annotated, tensors are tried first and arrays then, on two observations of zeros, and whichever gives something
understood stays.

**What it may give** for those n states, told apart by type, shape and dtype:

- a ``distillrl.Prediction``: taken as it is;
- a ``torch.distributions`` Categorical, Bernoulli, Normal, or an Independent of one: the distribution;
- whole numbers [n], or [n, A]: actions of a discrete, multidiscrete or multibinary space;
- floats [n, A] with a discrete space of A actions: logits (any scale); [n, Σ nvec] with a multidiscrete one, [n, A] with a multibinary one: likewise;
- floats [n, A] (or [n] where A is 1, or [n, *shape]) with a Box: the action itself, deterministic;
- a pair of such floats with a Box: (mean, std) of a Gaussian, std above 0 and [A] or [n, A].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributions, nn

from distillrl.actions import HEADS, Action, Bernoulli, Categorical, Deterministic, Gaussian, Head
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.policies import ACTION, Memory
from distillrl.records import ActionSpace, Prediction, Spec

if TYPE_CHECKING:
    from distillrl.teachers import Options

TRIED = 2
"""How many observations of zeros a module or function is tried on when it is loaded."""


def load(source: Any, options: Options, spec: Spec | None) -> Any:
    """A policy of a live object; raises Misconfigured where it is none, or where ``spec`` is needed and not given."""
    from distillrl.teachers import libraries

    if (found := libraries.load(source, options, spec)) is not None:
        return found
    if _is_sb3(source):
        from distillrl.teachers import sb3live

        return sb3live.load(source, options)
    if not callable(source):
        raise Misconfigured(
            f"a {type(source).__name__} is no teacher; a path, an nn.Module, a function of a batch of observations, a loaded model of stable-baselines3, d3rlpy, RLlib, Tianshou, skrl or flax, or a policy is right"
        )
    if spec is None:
        raise Missing(f"a {_kind(source)} doesn't say what it sees and does: give the environment's spec with it, load(source, options, spec)")
    if options.sees is not None:
        spec = _seeing(spec, options.sees)
    return _module(source, spec) if isinstance(source, nn.Module) else _function(source, spec)


def _is_sb3(source: Any) -> bool:
    names = {f"{c.__module__.split('.')[0]}.{c.__name__}" for c in type(source).__mro__}
    return "stable_baselines3.BaseAlgorithm" in names


def _kind(source: Any) -> str:
    return f"module ({type(source).__name__})" if isinstance(source, nn.Module) else "function"


def _seeing(spec: Spec, sees: str) -> Spec:
    names = [name.strip() for name in sees.split(",")]
    for name in names:
        if name not in spec.observations:
            raise Misconfigured(f"--teacher-sees {sees}: there is no observation group {name!r}; there are {', '.join(spec.observations)}")
    return Spec({name: spec.observations[name] for name in names}, spec.action, spec.reward_scale)


@dataclass
class Called:
    """A policy that asks a function; ``features`` are names of submodules whose outputs it can give."""

    spec: Spec
    gives: frozenset[str]
    info: dict[str, Any]
    call: Callable[[dict[str, Tensor]], Any]
    module: nn.Module | None = None
    features: Mapping[str, nn.Module] = field(default_factory=dict)

    def init(self, n: int) -> Memory:
        """None: what it remembers itself, it must not."""
        return {}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See policies.Policy; leading shapes [n] and [T, n] are both flattened to one batch for the call."""
        first = next(iter(self.spec.observations))
        lead = obs[first].shape[: obs[first].dim() - len(self.spec.observations[first].shape)]
        flat = {name: obs[name].reshape(-1, *group.shape) for name, group in self.spec.observations.items()}
        asked = {name: m for name, m in self.features.items() if f"features.{name}" in wants}
        prediction, found = _with_features(lambda: self.call(flat), asked)
        prediction = understood(prediction, self.spec.action, flat[first].shape[0])
        prediction = Prediction(**{f: getattr(prediction, f) for f in ("action", "q", "quantiles", "value", "uncertainty")}, features={**prediction.features, **found})
        return (_reshaped(prediction, lead) if len(lead) != 1 else prediction), memory

    def acting_parameters(self) -> int | None:
        """All parameters of a module: which of them act isn't known from outside. None for a function."""
        return sum(p.numel() for p in self.module.parameters()) if self.module is not None else None


def _reshaped(prediction: Prediction, lead: torch.Size) -> Prediction:
    from distillrl.records import over_states

    return over_states(lambda x: x.reshape(*lead, *x.shape[1:]), prediction)


def _with_features(call: Callable[[], Any], asked: Mapping[str, nn.Module]) -> tuple[Any, dict[str, Tensor]]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, output: found.__setitem__(name, output) if isinstance(output, Tensor) else None

    handles = [module.register_forward_hook(keep(name)) for name, module in asked.items()]
    try:
        return call(), found
    finally:
        for handle in handles:
            handle.remove()


# ── making one ────────────────────────────────────────────────────────────────────────────────────────────────────


def _module(module: nn.Module, spec: Spec) -> Called:
    def call(obs: dict[str, Tensor]) -> Any:
        training = module.training
        module.eval()
        try:
            return module(_given({k: v.float() if v.dtype == torch.float64 else v for k, v in obs.items()}))
        finally:
            module.train(training)

    leaves = {name.replace(".", "_"): m for name, m in module.named_modules() if name and not list(m.children())}
    zeros = _zeros(spec)
    try:
        with torch.no_grad():
            output, found = _with_features(lambda: call(zeros), leaves)
    except Exception as error:  # the user's own code may raise anything: it is told in a sentence
        raise Misconfigured(f"the module {type(module).__name__} can't be called with {_shapes(spec)}: {type(error).__name__}: {error}") from error
    prediction = understood(output, spec.action, TRIED)
    features = {n: leaves[n] for n, v in found.items() if v.dim() == 2 and len(v) == TRIED and v.is_floating_point()}
    kinds = [type(m).__name__ for m in leaves.values()]
    notes = ["the module is in training mode; it is put into evaluation mode for each call"] if module.training else []
    info = _info("torch module", type(module).__name__, prediction, spec, kinds, notes, features)
    policy = Called(spec, frozenset(info["gives"]), info, call, module, features)
    policy.info["parameters"] = policy.acting_parameters()
    return policy


def _function(function: Callable[..., Any], spec: Spec) -> Called:
    def with_arrays(obs: dict[str, Tensor]) -> Any:
        return function(_given({k: v.numpy() for k, v in obs.items()}))

    def with_tensors(obs: dict[str, Tensor]) -> Any:
        return function(_given(obs))

    said = _annotation(function)
    ways = {"numpy arrays": with_arrays} if said == "array" else {"torch tensors": with_tensors} if said == "tensor" else {"torch tensors": with_tensors, "numpy arrays": with_arrays}
    reasons = []
    for word, call in ways.items():
        try:
            with torch.no_grad():
                prediction = understood(call(_zeros(spec)), spec.action, TRIED)
        except Exception as error:  # the user's own code may raise anything: the other way is tried, then all is told
            reasons.append(f"with {word}: {type(error).__name__}: {error}")
            continue
        name = getattr(function, "__name__", type(function).__name__)
        info = _info("function", name, prediction, spec, [], [f"it is called with {word}"], {})
        return Called(spec, frozenset(info["gives"]), info, call)
    raise Misconfigured(f"the function {getattr(function, '__name__', '?')} can't be asked about {_shapes(spec)}; " + "; ".join(reasons))


def _annotation(function: Callable[..., Any]) -> str:
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except (TypeError, ValueError):
        return ""
    text = str(first.annotation) if first is not None else ""
    return "array" if "ndarray" in text else "tensor" if "Tensor" in text else ""


def _info(kind: str, name: str, prediction: Prediction, spec: Spec, layers: list[str], notes: list[str], features: Mapping[str, Any]) -> dict[str, Any]:
    gives = {"action"} | {f"features.{n}" for n in features} | {f"features.{n}" for n in prediction.features}
    gives |= {f for f in ("q", "quantiles", "value", "uncertainty") if getattr(prediction, f) is not None}
    if prediction.action is not None and not isinstance(prediction.action, Deterministic):
        gives.add("distribution")
    return {
        "format": kind, "algorithm": None, "name": name, "saved_by": None, "layers": layers, "activation": None, "normaliser": "its own affair",
        "observation_space": ", ".join(f"{k}: {g}" for k, g in spec.observations.items()), "action_space": str(spec.action), "gives": sorted(gives),
        "missing": {k: f"the {kind} doesn't give it" for k in ("distribution", "q", "quantiles", "value", "uncertainty") if k not in gives},
        "parameters": None, "environment": None, "notes": notes,
    }  # fmt: skip


def _given(obs: dict[str, Any]) -> Any:
    return next(iter(obs.values())) if len(obs) == 1 else obs


def _zeros(spec: Spec) -> dict[str, Tensor]:
    return {name: torch.zeros((TRIED, *g.shape), dtype=getattr(torch, g.dtype, torch.float32)) for name, g in spec.observations.items()}


def _shapes(spec: Spec) -> str:
    return "a batch of " + ", ".join(f"{name} {[TRIED, *g.shape]} {g.dtype}" for name, g in spec.observations.items())


# ── understanding what came out ───────────────────────────────────────────────────────────────────────────────────


def understood(output: Any, space: ActionSpace, n: int) -> Prediction:
    """The Prediction that an output means (see this module's docstring); raises Misconfigured where it means none."""
    if isinstance(output, Prediction):
        return output
    head = Head.of("deterministic", space)
    action: Action
    if isinstance(output, distributions.Distribution):
        action = _of_distribution(output, space, head)
    elif isinstance(output, (tuple, list)) and len(output) == 2 and space.kind == "box":
        mean, std = (_tensor(part) for part in output)
        mean = _shaped(mean, space, n)
        if std.numel() not in {space.dimensions, mean.numel()} or not bool((std > 0).all()):
            raise Misconfigured(f"a pair was given, of which the second part {list(std.shape)} is no standard deviation: numbers above 0, [{space.dimensions}] or [n, {space.dimensions}]")
        action = Gaussian(mean, std.float().reshape(-1, space.dimensions).log().expand_as(mean), head.low, head.high)
    else:
        action = _of_numbers(_tensor(output), space, head, n)
    if not all(bool(torch.isfinite(v).all()) for v in (getattr(action, f, None) for f in ("logits", "mean", "value")) if isinstance(v, Tensor)):
        raise Failed("the teacher gave NaN or infinity")
    return Prediction(action)


def _of_numbers(x: Tensor, space: ActionSpace, head: Head, n: int) -> Action:
    if not x.is_floating_point():
        if space.kind == "discrete" and x.numel() == n:
            return Deterministic(x.reshape(n).long())
        if space.kind != "discrete" and x.numel() == n * space.dimensions:
            return Deterministic(x.reshape(n, -1).long()) if space.kind != "box" else Deterministic(x.reshape(n, -1).float(), head.low, head.high)
    elif space.kind == "box":
        return Deterministic(_shaped(x, space, n), head.low, head.high)
    elif x.shape == (n, space.size):
        return head_of(space).decode(x.float())
    raise Misconfigured(
        f"{x.dtype} of shape {list(x.shape)} was given for {n} states, which is no action of {space}: whole numbers are actions, floats [{n}, {space.size}] are {'the action' if space.kind == 'box' else 'logits'}"
    )


def head_of(space: ActionSpace) -> Head:
    """The head that reads logits of a space."""
    return Head.of(HEADS[space.kind], space)


def _shaped(x: Tensor, space: ActionSpace, n: int) -> Tensor:
    if x.numel() != n * space.dimensions or x.shape[:1] != (n,):
        raise Misconfigured(f"{x.dtype} of shape {list(x.shape)} was given for {n} states; an action of {space} is [{n}, {space.dimensions}]")
    return x.float().reshape(n, space.dimensions)


def _of_distribution(given: distributions.Distribution, space: ActionSpace, head: Head) -> Action:
    inner = given.base_dist if isinstance(given, distributions.Independent) else given
    if isinstance(inner, distributions.Categorical) and space.kind == "discrete":
        return Categorical(inner.logits)
    if isinstance(inner, distributions.Bernoulli) and space.kind == "multibinary":
        return Bernoulli(inner.logits)
    if isinstance(inner, distributions.Normal) and space.kind == "box":
        return Gaussian(inner.mean.reshape(len(inner.mean), -1), inner.stddev.reshape(len(inner.mean), -1).log(), head.low, head.high)
    raise Misconfigured(f"a {type(given).__name__} distribution was given, which is none over {space}")


def _tensor(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x
    try:
        return torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError, RuntimeError) as error:
        raise Misconfigured(f"a {type(x).__name__} was given, an array or a tensor is right ({error})") from None


