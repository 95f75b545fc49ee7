"""Robot policies as their libraries export them: memory inside the file, history, estimators, attention; one state at a time in the file, any number here."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillrl.records import ActionSpace, Group, Spec
from distillrl.teachers import Options, load
from distillrl.teachers.graphpolicy import GraphPolicy

FORMS = ("script", "trace", "export")
STEPS, ROBOTS = 4, 5


def layers(*widths: int, act: type[nn.Module] = nn.ELU) -> nn.Sequential:
    made: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        made += [nn.Linear(a, b), act()]
    return nn.Sequential(*made[:-1])


class Stacked(nn.Module):
    """legged_gym's PolicyExporterLSTM with two layers and a normaliser."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.actor = nn.LSTM(12, 16, 2), layers(16, 16, 4)
        self.register_buffer("mean", torch.randn(12))
        self.register_buffer("hidden_state", torch.zeros(2, 1, 16))
        self.register_buffer("cell_state", torch.zeros(2, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clip((x - self.mean) / 1.5, -5.0, 5.0)
        out, (h, c) = self.memory(x.unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:], self.cell_state[:] = h, c
        return self.actor(out.squeeze(0))


class Gated(nn.Module):
    """A GRU whose state is copied into its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.actor = nn.GRU(12, 8), layers(8, 4)
        self.register_buffer("hidden_state", torch.zeros(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        out, h = self.rnn(x.unsqueeze(0), self.hidden_state)
        self.hidden_state.copy_(h)
        return torch.tanh(self.actor(out.squeeze(0)))


class Cell(nn.Module):
    """An LSTMCell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.actor = nn.LSTMCell(12, 8), layers(8, 4)
        self.register_buffer("h", torch.zeros(1, 8))
        self.register_buffer("c", torch.zeros(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.cell(x, (self.h, self.c))
        self.h.copy_(h)
        self.c.copy_(c)
        return self.actor(h)


class Estimator(nn.Module):
    """A window of observations inside, a velocity estimator and a latent of unit length beside the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.estimator, self.actor = layers(36, 16, 6), layers(36, 16, 3), layers(21, 16, 4)
        self.register_buffer("history", torch.zeros(1, 36))

    def forward(self, x: Tensor) -> Tensor:
        self.history.copy_(torch.cat([self.history[:, 12:], x], dim=1))
        latent = nn.functional.normalize(self.encoder(self.history), p=2.0, dim=-1)
        return self.actor(torch.cat([x, latent, self.estimator(self.history)], dim=-1))


class Attentive(nn.Module):
    """Attention over three joints, which folds the batch into its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.out = nn.Linear(4, 8), nn.MultiheadAttention(8, 2), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.reshape(-1, 3, 4)).transpose(0, 1)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.out((tokens + mixed).transpose(0, 1).flatten(1))


class Convolved(nn.Module):
    """An adaptation module that convolves over three observations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.actor = nn.Sequential(nn.Conv1d(4, 6, 2), nn.ReLU(), nn.Flatten()), layers(16, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.actor(torch.cat([x[:, -4:], self.conv(x.reshape(x.shape[0], 3, 4).permute(0, 2, 1))], 1))


MEMORIES = {Stacked: {"hidden_state", "cell_state"}, Gated: {"hidden_state"}, Cell: {"h", "c"}, Estimator: {"history"}, Attentive: set(), Convolved: set()}


@pytest.fixture(autouse=True)
def plain_attention() -> Any:
    """Exporters write attention down step by step."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def spec(**groups: int) -> Spec:
    return Spec({name: Group((width,), "float32") for name, width in groups.items()}, ActionSpace("box", (4,), low=(-9.0,) * 4, high=(9.0,) * 4, dtype="float32"))


def one_by_one(module: nn.Module, x: Tensor) -> Tensor:
    """[T, N, 4] what the module itself does, a robot of its own for each of N."""
    alone = []
    with torch.no_grad():
        for i in range(x.shape[1]):
            mine = copy.deepcopy(module)
            alone.append(torch.cat([mine(x[t, i : i + 1]) for t in range(len(x))]))
    return torch.stack(alone, 1)


def played(policy: Any, obs: dict[str, Tensor]) -> Tensor:
    """[T, N, 4] what the policy does of observations [T, N, ...]."""
    n = next(iter(obs.values())).shape[1]
    memory, actions = policy.init(n), []
    with torch.inference_mode():
        for t in range(STEPS):
            prediction, memory = policy.act({k: v[t] for k, v in obs.items()}, memory, torch.full((n,), t == 0))
            actions.append(prediction.action.mode)
    return torch.stack(actions)


def saved(module: nn.Module, form: str, folder: Path) -> Path:
    """The module as a file, written down for one observation."""
    module, example = copy.deepcopy(module), torch.zeros(1, 12)
    path = folder / ("policy.pt2" if form == "export" else "policy.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "export":
            torch.export.save(torch.export.export(module, (example,)), str(path))
        else:
            (torch.jit.script(module) if form == "script" else torch.jit.trace(module, example, check_trace=False)).save(str(path))
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MEMORIES)
def test_each_robot_has_a_memory_of_its_own(kind: type[nn.Module], form: str, tmp_path: Path) -> None:
    if (kind, form) == (Attentive, "script"):
        pytest.skip("torch.jit.script can't read its own MultiheadAttention without the fast path")
    torch.manual_seed(3)
    module = kind().eval()
    x = torch.randn(STEPS, ROBOTS, 12)
    policy = load(saved(module, form, tmp_path), Options(), spec(obs=12))
    assert isinstance(policy, GraphPolicy)
    assert {name.removeprefix("b_") for name in policy.init(2)} == MEMORIES[kind]
    assert torch.allclose(played(policy, {"obs": x}), one_by_one(module, x), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_what_folds_the_batch_into_its_heads_is_asked_in_one_call(n: int, tmp_path: Path) -> None:
    onnx_file = tmp_path / "p.onnx"
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    torch.manual_seed(4)
    module = Attentive().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(1, 12),), str(onnx_file), input_names=["obs"], output_names=["actions"], dynamo=False)
    policy = load(onnx_file, Options(), spec(obs=12))
    assert isinstance(policy, GraphPolicy)
    assert policy.network.graph.alone
    assert policy.info["notes"] == []
    x = torch.randn(STEPS, n, 12)
    assert torch.allclose(played(policy, {"obs": x}), one_by_one(module, x), atol=1e-5)


class Carried(nn.Module):
    """What goes in and comes out again: an LSTM of two layers, a GRU, a window of observations; with a second input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.rnn = nn.LSTM(12, 8, 2) if kind == "lstm" else nn.GRU(12, 8)
        self.actor = layers(8 + 3, 4) if kind != "history" else layers(36 + 3, 8, 4)

    def forward(self, obs: Tensor, command: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if self.kind == "history":
            kept = torch.cat([states[0][:, 1:], obs.unsqueeze(1)], 1)
            return torch.tanh(self.actor(torch.cat([kept.flatten(1), command], -1))), kept
        out, new = self.rnn(obs.unsqueeze(0), tuple(states) if self.kind == "lstm" else states[0])
        return torch.tanh(self.actor(torch.cat([out.squeeze(0), command * 2], -1))), *(new if self.kind == "lstm" else (new,))


STATES: dict[str, Sequence[tuple[str, tuple[int, ...]]]] = {"lstm": (("h", (2, 1, 8)), ("c", (2, 1, 8))), "gru": (("h", (1, 1, 8)),), "history": (("history", (1, 3, 12)),)}


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("kind", STATES)
def test_states_that_go_in_and_out_of_onnx(kind: str, free: bool, opset: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    torch.manual_seed(5)
    module, states = Carried(kind).eval(), STATES[kind]
    names = ["obs", "command", *(f"{n}_in" for n, _ in states)]
    outs = ["actions", *(f"{n}_out" for n, _ in states)]
    axis = 0 if kind == "history" else 1
    axes = {n: {0 if n in {"obs", "command", "actions"} else axis: "batch"} for n in (*names, *outs)} if free else None
    first = tuple(torch.zeros(shape) for _, shape in states)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(1, 12), torch.zeros(1, 3), *first), str(tmp_path / "p.onnx"), input_names=names, output_names=outs, dynamic_axes=axes, opset_version=opset, dynamo=False)
    policy = load(tmp_path / "p.onnx", Options(), spec(obs=12, command=3))
    assert isinstance(policy, GraphPolicy), policy.info["notes"]
    x, command = torch.randn(STEPS, ROBOTS, 12), torch.randn(STEPS, ROBOTS, 3)
    theirs = []
    with torch.no_grad():
        for i in range(ROBOTS):
            kept = first
            for t in range(STEPS):
                action, *kept = module(x[t, i : i + 1], command[t, i : i + 1], *kept)
                theirs.append(action)
    ours = played(policy, {"obs": x, "command": command})
    assert torch.allclose(ours.transpose(0, 1).reshape(-1, 4), torch.cat(theirs), atol=1e-5)
