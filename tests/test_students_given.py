"""Students of the user's own class: plain modules and whole policies, by name and in Python; nothing runs that wasn't named."""

import sys

import pytest
import torch
from test_distillation import Corridor, small, steer
from torch import nn

import distillrl
from distillrl import artifact, students
from distillrl.actions import Categorical
from distillrl.errors import Misconfigured
from distillrl.policies import ACTION
from distillrl.records import ActionSpace, Group, Prediction, Spec
from distillrl.teachers import Options

TWO = Spec({"obs": Group((2,), "float32")}, ActionSpace("discrete", n=3))
CODE = """
import torch
from torch import nn
from distillrl.actions import Categorical
from distillrl.records import Prediction

class Net(nn.Sequential):
    def __init__(self, spec):
        super().__init__(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, spec.action.size))

class Whole(nn.Module):
    gives = {"action", "distribution"}
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(3, spec.action.size)
    def init(self, n):
        return {"last": torch.zeros(n, 1)}
    def act(self, obs, memory, starts, wants):
        x = obs["obs"]
        last = memory.get("last", torch.zeros(*x.shape[:-1], 1))
        if x.dim() == 3:
            last = torch.zeros(*x.shape[:-1], 1)
        return Prediction(Categorical(self.layer(torch.cat([x, last], -1)))), {"last": x[..., :1]} if x.dim() == 2 else {}

class NoNet:
    def __init__(self, spec):
        pass

class Wrong(nn.Linear):
    def __init__(self, spec):
        super().__init__(2, 7)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_own_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own_nets", raising=False)
    return tmp_path


class Mine(nn.Sequential):
    """A class of this file, given in Python."""

    def __init__(self, spec):
        super().__init__(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, spec.action.size))


@pytest.mark.parametrize("word", ["my_own_nets:Net", "my_own_nets:Whole"])
def test_it_is_distilled_by_name_saved_and_loaded_by_name(mine, word):
    result = distillrl.distill(steer("discrete"), Corridor, config=small(student=word, env_steps=3000), out=mine / "r")
    assert result.verdict["retention"]["value"] > 0.8
    path = result.folder / "student.safetensors"
    with pytest.raises(Misconfigured, match=f"--model {word}"):
        distillrl.load(path)
    again = distillrl.load(path, Options(model=word))
    x = torch.randn(20, 2)
    assert torch.equal(again.policy.act({"obs": x}, {}, None)[0].action.mode, result.policy.policy.act({"obs": x}, {}, None)[0].action.mode)
    header, tensors = artifact.load(path)
    assert header["family"] == word
    assert any(name.startswith(("body.own", "own")) for name in tensors)


def test_a_class_is_given_in_python_and_the_run_is_deterministic(tmp_path):
    def once(name):
        return distillrl.distill(steer("discrete"), Corridor, Mine, config=small(env_steps=1500), out=tmp_path / name)

    before = torch.get_rng_state()
    first = once("a")
    assert torch.equal(torch.get_rng_state(), before)
    assert (first.folder / "student.safetensors").read_bytes() == (once("b").folder / "student.safetensors").read_bytes()
    assert students.build(*artifact.load(first.folder / "student.safetensors"), Mine).gives >= {"action", "features.own"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("my_own_nets:NoNet", "a torch.nn.Module is right"),
        ("my_own_nets:Wrong", r"\[2, 7\] for two states; \[2, 3\] is right"),
        ("my_own_nets:Nett", "did you mean 'Net'"),
        ("no_such_module:Net", "No module named"),
        ("mlpp:relu", "did you mean 'mlp'"),
        ("linear", "its sizes are missing, as in linear:terms=4"),
    ],
)
def test_what_is_no_student_is_refused_with_a_sentence(mine, word, said):
    with pytest.raises(Misconfigured, match=said):
        students.make(word, TWO, torch.Generator())


def test_a_module_that_breaks_the_contract_is_refused():
    class Half(nn.Module):
        def act(self, obs, memory, starts, wants):
            return Prediction(Categorical(torch.zeros(len(obs["obs"]), 3))), {}

    class Liar(Half):
        gives = ACTION

        def init(self, n):
            return {}

        def act(self, obs, memory, starts, wants):
            return torch.zeros(3)

    with pytest.raises(Misconfigured, match="no init and no gives"):
        students.make("here:Half", TWO, torch.Generator(), own=lambda spec: Half())
    liar = students.make("here:Liar", TWO, torch.Generator(), own=lambda spec: Liar())
    with pytest.raises(Misconfigured, match="act\\(\\) gave a Tensor"):
        liar.act({"obs": torch.zeros(1, 2)}, {}, None)
    with pytest.raises(Misconfigured, match="--see can only choose groups"):
        students.make("here:Liar", TWO, torch.Generator(), see="pick=0", own=lambda spec: Liar())
