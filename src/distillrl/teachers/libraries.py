"""Loaded objects of d3rlpy, RLlib, SBX, Tianshou, skrl and flax: saved and read like their files where the library can save one,
else their own policy is asked. A row each; nothing is imported that the object hasn't imported already.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributions

from distillrl.actions import Deterministic, Gaussian, Head
from distillrl.errors import DistillError, Misconfigured, Missing
from distillrl.records import Prediction, Spec

if TYPE_CHECKING:
    from distillrl.teachers import Options


def load(source: Any, options: Options, spec: Spec | None) -> Any:
    """The policy of a library's object; None where it is of none known here. Raises Missing or Misconfigured."""
    row = _ROWS.get(library(source))
    return None if row is None else row(source, options, spec)


def library(source: Any) -> str:
    """Whose class an object is; '' for all others."""
    if is_flax(source):
        return "flax"
    roots = [c.__module__.partition(".")[0] for c in type(source).__mro__]
    return next((root for root in roots if root in _ROWS), "")


def is_flax(source: Any) -> bool:
    """Whether it is a pair (module or apply function, parameters)."""
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Mapping) and (callable(source[0]) or callable(getattr(source[0], "apply", None)))


# ── saved, and read like a file ──


def _d3rlpy(source: Any, options: Options, spec: Spec | None) -> Any:
    from distillrl.teachers import d3rlpy

    def read(folder: Path) -> Any:
        source.save(str(folder / "model.d3"))
        return d3rlpy.load(folder / "model.d3", options, spec)

    return _as_file(source, read, spec, lambda obs: np.asarray(source.predict(obs)))


def _rllib(source: Any, options: Options, spec: Spec | None) -> Any:
    from distillrl.teachers import rllib

    def read(folder: Path) -> Any:
        (source.save_to_path if hasattr(source, "save_to_path") else source.save)(str(folder / "checkpoint"))
        return rllib.load(folder / "checkpoint", options, spec)

    return _as_file(source, read, spec, lambda obs: np.asarray(source.compute_actions(obs)[0]))


def _sbx(source: Any, options: Options, spec: Spec | None) -> Any:
    from distillrl.teachers import flax

    def read(folder: Path) -> Any:
        source.save(str(folder / "model.zip"))
        return flax.load(folder / "model.zip", options, spec)

    return _as_file(source, read, spec, lambda obs: np.asarray(source.predict(obs, deterministic=True)[0]))


def _as_file(source: Any, read: Callable[[Path], Any], spec: Spec | None, ask: Callable[[Any], Any]) -> Any:
    """What its file is read as; where that can't be, what it answers when it is asked."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return read(Path(folder))
        except DistillError as error:
            if spec is None:
                raise
            reason = str(error).replace(folder, "its file")

    def asked(obs: np.ndarray) -> Any:
        return ask(obs)

    return _told(_live(asked, spec), source, f"its own code is asked, as {reason}")


# ── asked ──


def _tianshou(source: Any, options: Options, spec: Spec | None) -> Any:
    policy = getattr(source, "policy", source)
    batch = getattr(sys.modules.get("tianshou.data"), "Batch", None)
    if batch is None or not callable(policy):
        raise Misconfigured(f"a {type(source).__name__} of Tianshou is no teacher; an Algorithm or a Policy is right")

    def asked(obs: np.ndarray) -> Any:
        training, sampled = policy.training, getattr(policy, "deterministic_eval", None)
        policy.eval()
        if sampled is not None:
            policy.deterministic_eval = True
        try:
            result = policy(batch(obs=obs, info=batch()))
        finally:
            policy.train(training)
            if sampled is not None:
                policy.deterministic_eval = sampled
        dist, act = getattr(result, "dist", None), _array(result.act)
        if isinstance(dist, (distributions.Categorical, distributions.Bernoulli)):
            return dist
        if dist is None and spec is not None and spec.action.kind == "discrete" and isinstance(getattr(result, "logits", None), Tensor):
            return Prediction(Deterministic(torch.as_tensor(act).long()), q=result.logits)
        return _array(policy.map_action(act))

    return _told(_live(asked, spec), source, "its own code is asked; of a continuous action the most likely one is known, its spread isn't")


def _skrl(source: Any, options: Options, spec: Spec | None) -> Any:
    policy = getattr(source, "policy", None) or (getattr(source, "models", None) or {}).get("policy")
    if policy is None:
        raise Misconfigured(f"a {type(source).__name__} of skrl is no teacher; an agent with a policy is right")
    new = hasattr(source, "_observation_preprocessor")
    place, scaled = ("observations", source._observation_preprocessor) if new else ("states", getattr(source, "_state_preprocessor", lambda x: x))

    def asked(obs: Tensor) -> Any:
        training = policy.training
        policy.eval()
        try:
            answer = policy.act({place: scaled(obs.float())}, role="policy")
            outputs = answer[-1] if isinstance(answer[-1], Mapping) else {}
            mean, dist = outputs.get("mean_actions"), policy.distribution(role="policy") if hasattr(policy, "distribution") else None
        finally:
            policy.train(training)
        if isinstance(dist, distributions.Categorical):
            return dist
        if isinstance(mean, Tensor) and isinstance(dist, distributions.Normal):
            head = Head.of("gaussian", _known(spec).action)
            return Prediction(Gaussian(mean, dist.stddev.log(), head.low, head.high))
        return mean if isinstance(mean, Tensor) else answer[0]

    return _told(_live(asked, spec), source, "its own code is asked, its preprocessor before it")


def _flax(source: Any, options: Options, spec: Spec | None) -> Any:
    if not is_flax(source):
        if not callable(source):
            raise Misconfigured(f"a flax {type(source).__name__} holds no parameters; the pair (module, parameters) is right, or a function of a batch of observations")
        call: Callable[[Any], Any] = source
    else:
        module, params = source
        apply = getattr(module, "apply", module)

        def call(obs: Any) -> Any:
            return apply(params, obs)

    def asked(obs: np.ndarray) -> Any:
        given = call({k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in obs.items()} if isinstance(obs, dict) else obs.astype(np.float32) if obs.dtype == np.float64 else obs)
        return tuple(_array(g) for g in given) if isinstance(given, (tuple, list)) else given if isinstance(given, Prediction) else _array(given)

    return _told(_live(asked, spec), source, "flax's apply function is asked; what it gives is taken as a function's answer is")


def _array(value: Any) -> np.ndarray:
    return np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)  # a copy: Jax's arrays can't be written


def _known(spec: Spec | None) -> Spec:
    if spec is None:
        raise Missing("such an object doesn't say what it sees and does: give the environment's spec with it, load(source, options, spec)")
    return spec


def _live(function: Callable[..., Any], spec: Spec | None) -> Any:
    from distillrl.teachers import Options, live

    return live.load(torch.no_grad()(function), Options(), _known(spec))


def _told(policy: Any, source: Any, note: str) -> Any:
    name = library(source)
    kind = type(source[0] if is_flax(source) else source).__name__
    policy.info |= {"format": f"a loaded object of {_TITLES.get(name, name)}", "algorithm": kind, "name": kind, "notes": [note]}
    return policy


_TITLES = {"ray": "RLlib", "tianshou": "Tianshou"}
_ROWS: dict[str, Callable[[Any, Options, Spec | None], Any]] = {"d3rlpy": _d3rlpy, "ray": _rllib, "sbx": _sbx, "tianshou": _tianshou, "skrl": _skrl, "flax": _flax}
