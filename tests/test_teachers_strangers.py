"""Weights as strangers have them: nested, wrapped, saved whole, of no library; each acts as the network it was saved from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillrl.errors import DistillError, Failed, Missing
from distillrl.records import ActionSpace, Group, Spec
from distillrl.teachers import Options, load

LANDER = Spec({"obs": Group((8,), "float32")}, ActionSpace("discrete", n=4))
WALK = Spec({"obs": Group((8,), "float32")}, ActionSpace("box", (3,), low=(-2.0,) * 3, high=(2.0,) * 3, dtype="float32"))
ATARI = Spec({"obs": Group((4, 84, 84), "uint8", (), 0.0, 255.0)}, ActionSpace("discrete", n=6))
L = nn.Linear


def mlp(*sizes: int, act: type[nn.Module] = nn.Tanh, last: type[nn.Module] | None = None) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [L(a, b), act()]
    return nn.Sequential(*parts[:-1], *([last()] if last else []))


class Agent(nn.Module):
    """CleanRL's ppo.py."""

    def __init__(self) -> None:
        super().__init__()
        self.critic, self.actor = mlp(8, 32, 32, 1), mlp(8, 32, 32, 4)


class ByHand(nn.Module):
    """PyTorch's own tutorials: layers by name, the activation in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.affine1, self.norm, self.affine2 = L(8, 32), nn.LayerNorm(32), L(32, 32)
        self.action_head, self.value_head = L(32, 4), L(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        latent = self.affine2(self.norm(self.affine1(x)).relu()).relu()
        return torch.cat([self.action_head(latent), self.value_head(latent)], -1)


class Noisy(nn.Module):
    """Fortunato 2018: played by its means."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.weight_mu, self.bias_mu = nn.Parameter(torch.randn(b, a) * 0.1), nn.Parameter(torch.randn(b))
        self.weight_sigma, self.bias_sigma = nn.Parameter(torch.ones(b, a)), nn.Parameter(torch.ones(b))
        self.register_buffer("weight_epsilon", torch.randn(b, a))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight_mu, self.bias_mu)


class Rainbow(nn.Module):
    """CleanRL's rainbow_atari.py."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("support", torch.linspace(-10, 10, 11))
        self.network = nn.Sequential(nn.Conv2d(4, 8, 8, 4), nn.ReLU(), nn.Conv2d(8, 8, 4, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 1), nn.ReLU(), nn.Flatten())
        self.value_head = nn.Sequential(Noisy(392, 16), nn.ReLU(), Noisy(16, 11))
        self.advantage_head = nn.Sequential(Noisy(392, 16), nn.ReLU(), Noisy(16, 66))

    def forward(self, x: Tensor) -> Tensor:
        h = self.network(x / 255.0)
        v, a = self.value_head(h).view(-1, 1, 11), self.advantage_head(h).view(-1, 6, 11)
        return ((v + a - a.mean(1, keepdim=True)).softmax(-1) * self.support).sum(-1)


class Dueling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feature = nn.Sequential(L(8, 32), nn.ReLU())
        self.value, self.advantage = mlp(32, 16, 1, act=nn.ReLU), mlp(32, 16, 4, act=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        h = self.feature(x)
        a = self.advantage(h)
        return self.value(h) + a - a.mean(-1, keepdim=True)


class Spinning(nn.Module):
    """Spinning Up's MLPActorCritic, which it saves whole."""

    def __init__(self) -> None:
        super().__init__()
        self.pi, self.v = nn.Module(), nn.Module()
        self.pi.mu_net, self.pi.log_std = mlp(8, 16, 16, 3, act=nn.ELU), nn.Parameter(-0.5 * torch.ones(3))
        self.v.v_net = mlp(8, 16, 16, 1, act=nn.ELU)


class Bounded(nn.Module):
    """Spinning Up's and many others' deterministic actor: tanh at the end, times the bound."""

    def __init__(self) -> None:
        super().__init__()
        self.pi, self.act_limit = mlp(8, 16, 16, 3, act=nn.ReLU, last=nn.Tanh), 2.0


def played(path: Path, spec: Spec, x: Tensor, wants: frozenset[str] = frozenset({"action", "q", "value"}), **options: Any) -> Any:
    return load(path, Options(**options), spec).act({"obs": x}, {}, None, wants)[0]


WRAPPED: dict[str, Callable[[Agent], Any]] = {
    "plain": lambda a: a.state_dict(),
    "in a checkpoint": lambda a: {"model_state_dict": a.state_dict(), "optimizer_state_dict": torch.optim.Adam(a.parameters()).state_dict(), "epoch": 3},
    "agent": lambda a: {"agent": a.state_dict(), "global_step": 7},
    "model_weights": lambda a: {"model_weights": a.state_dict(), "args": {"env_id": "LunarLander-v3"}},
    "data parallel": lambda a: {"state_dict": nn.DataParallel(a).state_dict()},
    "compiled": lambda a: {"model": {"net": {f"_orig_mod.{k}": v for k, v in a.state_dict().items()}}},
    "float64": lambda a: {k: v.double() for k, v in a.state_dict().items()},
    "whole": lambda a: a,
    "whole in a dict": lambda a: {"policy": a, "best": 3.0},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrapped_in_many_ways(tmp_path: Path, how: str) -> None:
    torch.manual_seed(0)
    agent, x = Agent(), torch.randn(16, 8)
    torch.save(WRAPPED[how](agent), tmp_path / "model.pt")
    found = played(tmp_path / "model.pt", LANDER, x)
    with torch.no_grad():
        assert torch.allclose(found.action.logits, agent.actor(x), atol=1e-5)
        assert torch.allclose(found.value, agent.critic(x)[:, 0], atol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("made", [Rainbow, Dueling])
def test_dueling_networks(tmp_path: Path, made: type[nn.Module], whole: bool) -> None:
    torch.manual_seed(1)
    net, spec = made(), ATARI if made is Rainbow else LANDER
    x = torch.randint(0, 255, (4, 4, 84, 84), dtype=torch.uint8) if made is Rainbow else torch.randn(16, 8)
    torch.save(net if whole else net.state_dict(), tmp_path / "q.pt")
    with torch.no_grad():
        assert torch.allclose(played(tmp_path / "q.pt", spec, x).q, net(x), atol=1e-5)


def test_layers_by_name_with_heads(tmp_path: Path) -> None:
    torch.manual_seed(2)
    net, x = ByHand(), torch.randn(16, 8)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    found = played(tmp_path / "net.pt", LANDER, x)
    with torch.no_grad():
        assert torch.allclose(torch.cat([found.action.logits, found.value[:, None]], -1), net(x), atol=1e-5)
    notes = " ".join(load(tmp_path / "net.pt", Options(), LANDER).info["notes"])
    assert "--format plain:ACTIVATION" in notes
    assert "affine1, norm, affine2, action_head" in notes
    assert played(tmp_path / "net.pt", LANDER, x, format="plain:tanh").action.logits.tolist() != found.action.logits.tolist()
    q = played(tmp_path / "net.pt", LANDER, x, format="plain_q")
    assert torch.equal(q.q, found.action.logits)


def test_a_module_saved_whole_says_its_activation_and_its_bound(tmp_path: Path) -> None:
    torch.manual_seed(3)
    x = torch.randn(16, 8)
    spinning, bounded = Spinning(), Bounded()
    torch.save(spinning, tmp_path / "model.pt")
    torch.save(bounded, tmp_path / "ddpg.pt")
    found = played(tmp_path / "model.pt", WALK, x)
    with torch.no_grad():
        assert torch.allclose(found.action.mean, spinning.pi.mu_net(x), atol=1e-5)
        assert torch.allclose(found.value, spinning.v.v_net(x)[:, 0], atol=1e-5)
        assert torch.allclose(found.action.log_std, torch.tensor(-0.5))
        assert torch.allclose(played(tmp_path / "ddpg.pt", WALK, x).action.mode, 2 * bounded.pi(x), atol=1e-5)
    notes = " ".join(load(tmp_path / "model.pt", Options(), WALK).info["notes"])
    assert "a whole module" in notes
    assert "default" not in notes


def test_an_action_that_ends_in_tanh_on_the_users_word(tmp_path: Path) -> None:
    torch.manual_seed(4)
    net, x = mlp(8, 16, 3, act=nn.ReLU), torch.randn(16, 8)
    torch.save({"l1.weight": net[0].weight, "l1.bias": net[0].bias, "l2.weight": net[2].weight, "l2.bias": net[2].bias}, tmp_path / "td3_actor")
    with torch.no_grad():
        assert torch.allclose(played(tmp_path / "td3_actor", WALK, x, format="plain:relu+tanh").action.mode, 2 * net(x).tanh(), atol=1e-5)
        assert torch.allclose(played(tmp_path / "td3_actor", WALK, x).action.mode, net(x).clamp(-2, 2), atol=1e-5)
    with pytest.raises(DistillError, match=r"relu\+tanh is right"):
        load(tmp_path / "td3_actor", Options(format="plain:relu+elu"), WALK)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.attention, self.two = L(8, 8), nn.MultiheadAttention(8, 2), L(8, 4)


@pytest.mark.parametrize("made", [Odd, lambda: nn.ModuleDict({"a": L(8, 16), "b": L(12, 4)}), lambda: nn.Sequential(L(8, 8), nn.Threshold(0.1, 20.0), L(8, 4))])
@pytest.mark.parametrize("whole", [False, True])
def test_what_cant_be_known_is_not_guessed(tmp_path: Path, made: Callable[[], nn.Module], whole: bool) -> None:
    net = made()
    if isinstance(net, nn.Sequential) and not whole:
        pytest.skip("without the module nothing tells of its odd layer but the note")
    torch.save(net if whole else net.state_dict(), tmp_path / "odd.pt")
    with pytest.raises((Missing, Failed), match="--model module:Class"):
        load(tmp_path / "odd.pt", Options(), LANDER)


def test_a_module_that_holds_itself(tmp_path: Path) -> None:
    net = Agent()
    net.myself = [net]  # no part of its layers: such things are passed over
    torch.save(net, tmp_path / "round.pt")
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.allclose(played(tmp_path / "round.pt", LANDER, x).action.logits, net.actor(x), atol=1e-5)
    net._modules["me"] = net
    torch.save(net, tmp_path / "round.pt")
    with pytest.raises(Failed, match="holds itself"):
        load(tmp_path / "round.pt", Options(), LANDER)


def test_a_users_class_with_weights_in_any_wrapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strangers_net.py").write_text("import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)\n\n    def forward(self, x):\n        return self.b(torch.sin(self.a(x)))\n")
    monkeypatch.syspath_prepend(tmp_path)
    import strangers_net  # type: ignore[import-not-found]  # just written

    net, x = strangers_net.Net(), torch.randn(5, 8)
    for saved in (net, net.state_dict(), {"model_state_dict": nn.DataParallel(net).state_dict()}, {"x": {"agent": net}}):
        torch.save(saved, tmp_path / "t.pt")
        found = played(tmp_path / "t.pt", LANDER, x, frozenset({"action"}), model="strangers_net:Net")
        with torch.no_grad():
            assert torch.allclose(found.action.logits, net(x), atol=1e-6)
