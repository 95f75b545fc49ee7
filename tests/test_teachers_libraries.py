"""Loaded objects of other libraries: classes with the libraries' names, methods and answers, as their documentation says.

The genuine libraries (d3rlpy 2.8.1, Tianshou 2.0.1, skrl 2.1.1, flax) gave the same actions in a run by hand; here stand
classes of their shape, so that the tests need none of them.
"""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured, Missing
from distillrl.records import ActionSpace, Group, Spec
from distillrl.teachers import Options, load

DATA = Path(__file__).parent / "data" / "formats"
BOX = Spec({"obs": Group((5,), "float32")}, ActionSpace("box", (2,), low=(-2.0, -2.0), high=(2.0, 2.0), dtype="float32"))
DISCRETE = Spec({"obs": Group((5,), "float32")}, ActionSpace("discrete", n=3))
X = torch.linspace(-2, 2, 35).reshape(7, 5)


def of(library: str) -> Any:
    """A class decorator: the class says that it is this library's."""

    def change(made: type) -> type:
        made.__module__ = f"{library}.somewhere"
        return made

    return change


def played(source: Any, spec: Spec | None) -> Any:
    return load(source, Options(), spec).act({"obs": X}, {}, None, frozenset({"action", "q"}))[0]


@pytest.mark.parametrize(("library", "case", "file", "method"), [("d3rlpy", "d3rlpy_sac", "model.d3", "save"), ("sbx", "sbx_ppo", "model.zip", "save"), ("ray", "rllib_ppo", "checkpoint", "save_to_path")])
def test_what_can_be_saved_is_read_like_its_file(library: str, case: str, file: str, method: str) -> None:
    def save(self: Any, path: str) -> None:
        (shutil.copytree if (DATA / case / file).is_dir() else shutil.copy)(DATA / case / file, path)

    made = of(library)(type("Algorithm", (), {method: save}))
    live, read = load(made()), load(DATA / case / file)
    x = torch.randn(4, *next(iter(read.spec.observations.values())).shape)
    name = next(iter(read.spec.observations))
    assert torch.equal(live.act({name: x}, {}, None)[0].action.mode, read.act({name: x}, {}, None)[0].action.mode)
    assert live.gives == read.gives


def test_what_cant_be_read_is_asked() -> None:
    @of("d3rlpy")
    class Own:
        def save(self, path: str) -> None:
            Path(path).write_bytes(b"of a kind that nobody knows")

        def predict(self, x: np.ndarray) -> np.ndarray:
            return x[:, :2]

    assert torch.equal(played(Own(), BOX).action.mode, X[:, :2])
    assert "its own code is asked" in load(Own(), Options(), BOX).info["notes"][0]
    assert "/tmp" not in load(Own(), Options(), BOX).info["notes"][0]


class Batch(dict[str, Any]):
    """Tianshou's Batch: a dict with attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@of("tianshou")
class Policy(nn.Module):
    deterministic_eval = False

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.net = kind, nn.Linear(5, 3 if kind != "box" else 2)

    def forward(self, batch: Batch) -> Batch:
        out = self.net(torch.as_tensor(batch.obs))
        if self.kind == "q":
            return Batch(logits=out, act=out.argmax(-1).numpy())
        if self.kind == "logits":
            dist = torch.distributions.Categorical(logits=out)
            return Batch(logits=out, act=dist.sample(), dist=dist)
        assert self.deterministic_eval
        assert not self.training
        dist = torch.distributions.Independent(torch.distributions.Normal(out, torch.ones_like(out)), 1)
        return Batch(act=out.tanh(), dist=dist)

    def map_action(self, act: np.ndarray) -> np.ndarray:
        return act * 2


def test_tianshou(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("tianshou.data")
    module.Batch = Batch  # type: ignore[attr-defined]  # as the library has it
    monkeypatch.setitem(sys.modules, "tianshou.data", module)
    torch.manual_seed(0)
    q, logits, box = Policy("q"), Policy("logits"), Policy("box")
    with torch.no_grad():
        assert torch.equal(played(q, DISCRETE).q, q.net(X))
        assert torch.allclose(played(logits, DISCRETE).action.log_probs, logits.net(X).log_softmax(-1), atol=1e-6)
        assert torch.equal(played(box, BOX).action.mode, 2 * box.net(X).tanh())
    assert box.training
    assert not box.deterministic_eval
    assert torch.equal(played(of("tianshou")(type("PPO", (), {"policy": box}))(), BOX).action.mode, played(box, BOX).action.mode)


class _Model(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.net = nn.Linear(5, out)


class Gaussian(_Model):
    def act(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        assert role == "policy"
        mean = self.net(inputs["observations"])
        self.made = torch.distributions.Normal(mean, torch.full_like(mean, 0.5))
        return self.made.sample(), {"mean_actions": mean}

    def distribution(self, role: str = "") -> Any:
        return self.made


class OldCategorical(_Model):
    def act(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, None, dict[str, Tensor]]:
        self.made = torch.distributions.Categorical(logits=self.net(inputs["states"]))
        return self.made.sample()[:, None], None, {}

    def distribution(self, role: str = "") -> Any:
        return self.made


class Deterministic(_Model):
    def act(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        return self.net(inputs["observations"]), {}


def test_skrl() -> None:
    torch.manual_seed(0)

    @of("skrl")
    class New:
        def __init__(self, policy: nn.Module) -> None:
            self.policy = policy

        def _observation_preprocessor(self, x: Tensor) -> Tensor:
            return (x - 1) / 2

    @of("skrl")
    class Old:
        def __init__(self, policy: nn.Module) -> None:
            self.models = {"policy": policy}

    gaussian, categorical, plain = Gaussian(2), OldCategorical(3), Deterministic(2)
    found = played(New(gaussian), BOX).action
    with torch.no_grad():
        assert torch.allclose(found.mean, gaussian.net((X - 1) / 2))
        assert torch.allclose(found.log_std.exp(), torch.tensor(0.5))
        assert torch.allclose(played(Old(categorical), DISCRETE).action.log_probs, categorical.net(X).log_softmax(-1), atol=1e-6)
        assert torch.allclose(played(New(plain), BOX).action.mode, plain.net((X - 1) / 2).clamp(-2, 2))
    assert not found.mean.requires_grad


def test_flax_pairs_and_modules() -> None:
    weight = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)

    class Dense:
        def apply(self, params: dict[str, Any], x: np.ndarray) -> np.ndarray:
            assert isinstance(x, np.ndarray)
            return x @ params["params"]["kernel"]

    module, params = Dense(), {"params": {"kernel": weight}}
    wanted = torch.as_tensor(np.clip(X.numpy() @ weight, -2, 2))
    for source in ((module, params), (module.apply, params)):
        assert torch.allclose(played(source, BOX).action.mode, wanted, atol=1e-6)
    bare = of("flax")(type("Module", (), {}))
    with pytest.raises(Misconfigured, match="the pair"):
        load(bare(), Options(), BOX)
    with pytest.raises(Missing, match="spec"):
        load((module, params))


def test_what_is_no_teacher() -> None:
    with pytest.raises(Misconfigured, match="Algorithm or a Policy"):
        load(of("tianshou")(type("Logger", (), {}))(), Options(), BOX)
    with pytest.raises(Misconfigured, match="with a policy"):
        load(of("skrl")(type("Trainer", (), {}))(), Options(), BOX)
