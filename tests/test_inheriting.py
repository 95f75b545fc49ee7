"""Weights inherited: the same function where a student is as wide or wider, the neurons that matter where it is narrower."""

import pytest
import torch
from test_distillation import Corridor, run, small
from torch import nn

from distillrl import inheriting, students
from distillrl.beginning import begin
from distillrl.errors import Misconfigured
from distillrl.records import ActionSpace, Group, Spec
from distillrl.settling import settle

SPEC = Spec({"obs": Group((3,), "float32")}, ActionSpace("discrete", n=3))


def network(word, seed=0):
    made = students.make(word, SPEC, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + 7)) * 0.3)
    return made


def states(n=200):
    return {"obs": torch.randn(n, 3, generator=torch.Generator().manual_seed(1))}


def logits(policy, obs):
    with torch.no_grad():
        return policy.act(obs, {}, None)[0].action.logits


@pytest.mark.parametrize("word", ["mlp:8x6", "mlp:8x20", "mlp:13x6", "mlp:64x64"])
def test_as_wide_or_wider_it_is_the_same_function(word):
    source, student, obs = network("mlp:8x6"), network(word, 3), states()
    inheriting.inherit(student, source, obs, torch.Generator())
    assert torch.allclose(logits(student, obs), logits(source, obs), atol=1e-6)


def test_copies_can_part():
    source, student = network("mlp:4"), network("mlp:8", 3)
    inheriting.inherit(student, source, states(), torch.Generator())
    out = student.out.weight.detach()
    assert len(torch.unique(out, dim=1).T) == 8, "each copy has a part of its own in what is given on"


def test_narrower_it_keeps_the_neurons_that_matter():
    source, student, obs = network("mlp:6"), network("mlp:2", 3), states()
    with torch.no_grad():
        source.out.weight[:, [0, 2, 3, 5]] *= 1e-4
        source.body[0].weight[3] = 0
        source.body[0].bias[3] = 2.0
        source.out.weight[:, 3] = 9.0
    inheriting.inherit(student, source, obs, torch.Generator())
    assert torch.equal(student.body[0].weight, source.body[0].weight[[1, 4]])
    assert torch.allclose(logits(student, obs), logits(source, obs), atol=2e-3), "what is constant went into the bias"


def test_other_depths_inherit_what_they_share():
    source = network("mlp:8x6")
    shallow, deep = network("mlp:8", 3), network("mlp:8x6x5", 3)
    before = shallow.out.weight.clone(), deep.body[4].weight.clone()
    for student in (shallow, deep):
        inheriting.inherit(student, source, states(), torch.Generator())
        assert torch.equal(student.body[0].weight, source.body[0].weight)
    assert torch.equal(shallow.out.weight, before[0])
    assert torch.equal(deep.body[4].weight, before[1])


def layered():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [1, 1]]))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[4.0, -4, 0, 0], [-1, -1, 0.5, 0], [-4, 4, 0, 0]]))
        net[2].bias.zero_()
    return net


def test_a_run_that_inherits_begins_where_its_source_is(tmp_path):
    first = run(tmp_path, name="a", student="mlp:8", until="retention=0.9", select_episodes=6, verdict_episodes=6, backend="gymnasium:1")
    wider = run(tmp_path, name="b", student="mlp:24", inherit=str(first.folder / "student.safetensors"), rounds=1, until="none", select_episodes=6, verdict_episodes=6, backend="gymnasium:1")
    assert wider.verdict["retention"]["value"] > 0.85
    assert wider.policy.policy.sense.to_json() == first.policy.policy.sense.to_json()


def test_what_can_not_be_inherited_is_said():
    def said(match, **changes):
        with pytest.raises(Misconfigured, match=match):
            begin(settle(small(slots=4, backend="gymnasium:1", **changes), lambda obs: obs.repeat(1, 2)[:, :3], lambda: Corridor()))

    said("no network of dense layers", inherit="teacher")
    said("give no --init and no --see", inherit="teacher", see="drop=1")
    with pytest.raises(Misconfigured, match="--student mlp:8:tanh is right"):
        inheriting.inherit(network("mlp:8:relu"), network("mlp:8"), states(), torch.Generator())
    with pytest.raises(Misconfigured, match=r"--student gru:8 is no network of dense layers|no network of dense"):
        inheriting.layers_of(students.make("gru:8", SPEC, torch.Generator()), "--student gru:8")
