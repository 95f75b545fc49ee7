"""Students of several senses: late fusion and attention."""

import numpy as np
import pytest
import torch

from distillrl import artifact, students
from distillrl.actions import Categorical
from distillrl.dataset import Dataset
from distillrl.errors import Misconfigured
from distillrl.learn import Gradient, Term
from distillrl.records import ActionSpace, Group, Prediction, Progress, Rollout, Spec

TWO = Spec({"code": Group((4,), "float32"), "sound": Group((6,), "float32"), "secret": Group((2,), "float32")}, ActionSpace("discrete", n=3))
PICTURE = Spec({"image": Group((16, 16, 3), "uint8", (), 0.0, 255.0), "speed": Group((2,), "float32")}, ActionSpace("discrete", n=3))
WORDS = ["late:8:16", "attention:8x2:16"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def observed(n=50, seed=3):
    return {k: torch.randn(n, *g.shape, generator=generator(seed)) for k, g in TWO.observations.items()}


@pytest.mark.parametrize("word", WORDS)
def test_it_comes_back_and_sees_nothing_that_it_must_not(word, tmp_path):
    student = students.make(word, TWO, generator(), see="group=code+sound")
    obs = observed()
    said = student.act(obs, {}, None)[0].action.logits
    artifact.save(tmp_path / "s.safetensors", student.header(), student.artifact_tensors())
    again = students.build(*artifact.load(tmp_path / "s.safetensors"))
    assert torch.equal(again.act(obs, {}, None)[0].action.logits, said)
    assert torch.equal(student.act({**obs, "secret": obs["secret"] + 9}, {}, None)[0].action.logits, said)
    assert not torch.allclose(student.act({**obs, "sound": obs["sound"] + 1}, {}, None)[0].action.logits, said)
    assert student.acting_parameters() == sum(p.numel() for p in student.parameters())


def test_attention_by_hand():
    """Two tokens of one number: with queries and keys of 0 both get the mean of the values."""
    from distillrl.students.fused import Attention

    layer = Attention(2, 1, 1)
    with torch.no_grad():
        layer.asks.weight.copy_(torch.tensor([[0.0], [0.0], [2.0]]))
        layer.asks.bias.zero_()
        layer.says.weight.fill_(1)
        layer.says.bias.zero_()
    assert torch.equal(layer(torch.tensor([1.0, 3.0])), torch.tensor([1.0 + 4, 3.0 + 4]))
    two, four = Attention(3, 4, 2), torch.randn(5, 12, generator=generator())
    with torch.no_grad():
        for p in two.parameters():
            p.normal_(generator=generator(1))
    assert torch.allclose(two(four)[2], two(four[2]), atol=1e-6)
    heads = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    with torch.no_grad():
        heads.in_proj_weight.copy_(two.asks.weight)
        heads.in_proj_bias.copy_(two.asks.bias)
        heads.out_proj.weight.copy_(two.says.weight)
        heads.out_proj.bias.copy_(two.says.bias)
        x = four.unflatten(-1, (3, 4))
        assert torch.allclose(two(four), (x + heads(x, x, x)[0]).flatten(-2), atol=1e-5)


@pytest.mark.parametrize("word", WORDS)
def test_it_learns_what_hangs_on_both_senses(word):
    """Which of three sounds counts says the code."""
    x = {k: torch.randn(101, 16, *g.shape, generator=generator(7)) for k, g in TWO.observations.items()}
    best = torch.where(x["code"][..., 0] > 0, x["sound"][..., :3].argmax(-1), x["sound"][..., 3:].argmax(-1))[:-1]
    no = torch.zeros(100, 16, dtype=torch.bool)
    teacher = Prediction(Categorical(torch.nn.functional.one_hot(best, 3) * 8.0))
    data = Dataset()
    data.append(Rollout(x, best, torch.zeros(100, 16), no, no, no, ~no, no.to(torch.int8), ~no, teacher, None, no.long()))
    student = students.make(word.replace(":16", ":32"), TWO, generator(), see="group=code+sound")
    learner = Gradient(student, [Term("kl", lambda _: 1.0, lambda s, b: b.teacher.action.kl(s.action), frozenset())], lr=1e-2, batch=128, updates=250, average=0.0, train="all", generator=generator(5))
    learner.learn(data, Progress())
    assert learner.learn(data, Progress())["term.kl"] < 0.3


@pytest.mark.parametrize("word", ["late:4-8:8:16", "attention:4-8:8x2:16"])
def test_images_and_numbers_are_fused(word):
    student = students.make(word, PICTURE, generator())
    obs = {"image": torch.randint(256, (5, 16, 16, 3), generator=generator(), dtype=torch.uint8), "speed": torch.ones(5, 2)}
    said = student.act(obs, {}, None)[0].action.logits
    assert said.shape == (5, 3)
    assert not torch.allclose(student.act({**obs, "image": 255 - obs["image"]}, {}, None)[0].action.logits, said)
    with pytest.raises(Misconfigured, match="convolutions stand first"):
        students.make(word.replace("4-8:", ""), PICTURE, generator())


@pytest.mark.parametrize("word", ["late:8:16", "attention:8x2:16"])
def test_fused_students_ship_as_code(word):
    from distillrl.targets import running, tracing

    student = students.make(word, TWO, generator(), see="group=code+sound")
    obs = observed(4)
    plan = tracing.trace(student)
    values = running.run(plan, {k: v.numpy() for k, v in obs.items()})
    assert np.allclose(values[plan.raw], student.act(obs, {}, None)[0].action.logits.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("word", ["late:", "late:0:16", "late:8x2:16", "attention:8:16", "attention:8x3:16", "attention:8x0:4", "attention:4-8", "late:8:x"])
def test_a_word_that_is_none_is_refused(word):
    with pytest.raises(Misconfigured, match="student"):
        students.check(word)


def test_one_sense_is_not_fused():
    with pytest.raises(Misconfigured, match="sees only code"):
        students.make("late:8:16", TWO, generator(), see="group=code")
