"""Students of the user's own: ``--student my_project.nets:MyNet``, or ``student=MyNet`` in Python.

The class is called with the Spec alone. What it makes is either a plain nn.Module, [..., F] → [..., size of the action's
raw output], which gets a sense, a normaliser and a head as an ``mlp`` does; or it has ``act``, ``init`` and ``gives`` as
``policies.Policy`` says, and then sees raw observations and says everything itself. An artifact names its class and
holds its tensors; to load it the class must be named again, and nothing runs that was not named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import HEADS, Head
from distillrl.errors import Misconfigured
from distillrl.policies import ACTION, Memory, flatten
from distillrl.records import Prediction, Spec
from distillrl.senses import Sense
from distillrl.students.networks import Network

WORD = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Own(nn.Module):
    """A user's module with ``act``, ``init`` and ``gives``, as a student of the loop."""

    def __init__(self, own: nn.Module, spec: Spec, word: str) -> None:
        super().__init__()
        self.own: Any = own
        self.spec, self.family = spec, word
        self.info: dict[str, Any] = {}

    @property
    def gives(self) -> frozenset[str]:
        """What it says that it gives."""
        return frozenset(self.own.gives)

    def init(self, n: int) -> Memory:
        """The module's own memory."""
        return dict(self.own.init(n))

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See Policy.act; raises Misconfigured where the module gives no Prediction of an action."""
        given = self.own.act(obs, memory, starts, wants)
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Prediction) and given[0].action is not None):
            raise Misconfigured(f"student {self.family}: act() gave a {type(given).__name__}; (Prediction(action, …), memory) is right")
        return given

    def acting_parameters(self) -> int:
        """All of the module's."""
        return sum(p.numel() for p in self.own.parameters())

    def header(self) -> dict[str, Any]:
        """The class's name, and the spec that it is called with."""
        return {"family": self.family, "spec": self.spec.to_json(), "sense": [], "head": "own"}

    def artifact_tensors(self) -> dict[str, Tensor]:
        """All of the module's tensors."""
        return {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}


class Passing(nn.Identity):
    """Gives on what the user's module gave; heads that are lent for training read it too."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.in_features = size


def is_one(word: str) -> bool:
    """Whether a word is written as ``module:Class``."""
    return WORD.fullmatch(word) is not None


def name_of(own: Any) -> str:
    """``module:Class`` of a class or a function."""
    return f"{getattr(own, '__module__', '?')}:{getattr(own, '__qualname__', type(own).__name__)}"


def make(own: Any, word: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Any:
    """An untrained student of the user's class; its weights are drawn by torch's own generator, seeded from ours and put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 31, (1,), generator=generator)))
        module = _called(own, word, spec)
    if hasattr(module, "act"):
        return _contract(module, word, spec, sense)
    head = Head.of(head_kind or HEADS[spec.action.kind], spec.action)
    return _plain(module, word, spec, sense, head)


def build(own: Any, word: str, spec: Spec, header: Mapping[str, Any]) -> Any:
    """The student of an artifact's header, its tensors not yet loaded; the user named the class."""
    with torch.random.fork_rng(devices=[]):
        module = _called(own, word, spec)
    if hasattr(module, "act"):
        return _contract(module, word, spec, Sense(spec.observations))
    return _plain(module, word, spec, Sense.from_json(spec.observations, header["sense"]), Head.of(str(header["head"]), spec.action))


def _called(own: Any, word: str, spec: Spec) -> nn.Module:
    try:
        module = own(spec)
    except TypeError as error:
        raise Misconfigured(f"student {word}: it is called with the Spec alone, {word.rpartition(':')[2]}(spec); {error}") from None
    if not isinstance(module, nn.Module):
        raise Misconfigured(f"student {word}: it made a {type(module).__name__}; a torch.nn.Module is right")
    return module


def _contract(module: Any, word: str, spec: Spec, sense: Sense) -> Own:
    missing = [name for name in ("init", "gives") if not hasattr(module, name)]
    if missing:
        raise Misconfigured(f"student {word}: it has act(), but no {' and no '.join(missing)}; see distillrl.policies.Policy")
    if any(step.kind not in {"pick", "one_hot"} for step in sense.steps):
        raise Misconfigured(f"student {word}: it sees by its own act(), so --see can only choose groups (group=NAME) for it")
    return Own(module, spec, word)


def _plain(module: nn.Module, word: str, spec: Spec, sense: Sense, head: Head) -> Network:
    seen = {k: torch.zeros(2, *g.shape, dtype=getattr(torch, g.dtype)) for k, g in sense.groups.items()}
    with torch.no_grad():
        try:
            raw = module(flatten(seen, sense.groups))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise Misconfigured(f"student {word}: forward() of two states as it sees them, flat, failed: {error}") from None
    if not isinstance(raw, Tensor) or raw.shape != (2, spec.action.size):
        shape = list(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        raise Misconfigured(f"student {word}: forward() gave {shape} for two states; [2, {spec.action.size}] is right for {spec.action}")
    body = nn.Sequential()
    body.add_module("own", module)
    log_std = torch.full((spec.action.dimensions,), -1.0) if head.has_log_std else None
    return Network(spec, sense, body, Passing(spec.action.size), head, log_std=log_std, family=word)
