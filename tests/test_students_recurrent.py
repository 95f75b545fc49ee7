"""Students with memory: steps equal sequences, memory ends with an episode, sequences count what they should."""

from dataclasses import replace

import pytest
import torch

from distillrl import phases, students
from distillrl.actions import Categorical
from distillrl.dataset import Dataset
from distillrl.errors import Misconfigured
from distillrl.learn import Gradient, Term
from distillrl.records import ActionSpace, Group, Prediction, Progress, Rollout, Spec

TWO = Spec({"obs": Group((2,), "float32")}, ActionSpace("discrete", n=2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("word", ["gru:8", "lstm:8:4"])
def test_a_sequence_equals_its_steps_and_an_episode_begins_with_nothing(word):
    student = students.make(word, TWO, generator())
    x, starts = torch.randn(9, 3, 2, generator=generator(1)), torch.zeros(9, 3, dtype=torch.bool)
    starts[0], starts[5, 1] = True, True
    whole, _ = student.act({"obs": x}, {}, starts)
    memory = {k: torch.randn(v.shape, generator=generator(2)) for k, v in student.init(3).items()}  # what was before must not matter
    for t in range(9):
        step, memory = student.act({"obs": x[t]}, memory, starts[t])
        assert torch.allclose(step.action.logits, whole.action.logits[t], atol=1e-6)
    fresh, _ = student.act({"obs": x[5]}, student.init(3), None)
    assert torch.allclose(fresh.action.logits[1], whole.action.logits[5, 1], atol=1e-6)
    assert not torch.allclose(fresh.action.logits[0], whole.action.logits[5, 0], atol=1e-6)


@pytest.mark.parametrize("word", ["gru:", "gru:0", "lstm:x", "gru:8:0", "gru:-1"])
def test_a_word_that_is_none_is_refused(word):
    with pytest.raises(Misconfigured):
        students.check(word)


def remembered(steps=200, slots=4):
    """A data set of one such rollout."""
    dataset = Dataset()
    dataset.append(remembered_rollout(steps, slots))
    return dataset


def remembered_rollout(steps=200, slots=4):
    """The right action is what was seen one step before; episodes of 10 steps."""
    x = (torch.rand(steps + 1, slots, 2, generator=generator(4)) > 0.5).float()
    starts = torch.zeros(steps, slots, dtype=torch.bool)
    starts[::10] = True
    best = torch.cat([torch.zeros(1, slots), x[: steps - 1, :, 0]]).long()
    best[starts] = 0
    no = torch.zeros(steps, slots, dtype=torch.bool)
    teacher = Prediction(Categorical(torch.nn.functional.one_hot(best, 2) * 8.0))
    return Rollout({"obs": x}, best, torch.zeros(steps, slots), no, no, starts, ~no, no.to(torch.int8), ~no, teacher, None, no.long())


def test_sequences_are_in_order_and_burn_in_counts_for_nothing():
    batch = remembered().sequences(12, 50, 4, generator())
    assert batch.obs["obs"].shape == (12, 50, 2)
    assert torch.equal(batch.teacher.action.mode[1:][~batch.starts[1:]], batch.obs["obs"][:-1, :, 0].long()[~batch.starts[1:]])
    known = batch.starts.cumsum(0) > 0
    assert torch.equal(batch.weight[:4] > 0, known[:4])
    assert bool((batch.weight[4:] == 1).all())


def test_a_gru_learns_what_no_glance_can_show():
    data = remembered()

    def loss(student, batch):
        return batch.teacher.action.kl(student.action)

    def learnt(word):
        student = students.make(word, TWO, generator())
        learner = Gradient(student, [Term("kl", lambda _: 1.0, loss, frozenset())], lr=1e-2, batch=64, updates=120, average=0.0, train="all", generator=generator(5))
        learner.learn(data, Progress())
        learner.updates = 10
        return learner.learn(data, Progress())["term.kl"]

    assert learnt("gru:8") < 0.15 < 0.5 < learnt("mlp:8")


@pytest.mark.parametrize("word", ["gru:16", "lstm:16"])
def test_it_begins_by_keeping_what_it_has(word):
    """Untrained, without input, more than half of its memory is there a step later."""
    student = students.make(word, TWO, generator())
    memory = {f"recurrent.{k}": 0.5 * torch.ones(1, 16) for k in student.recurrent.names}
    _, after = student.act({"obs": torch.zeros(1, 2)}, memory, None)
    kept = list(after.values())[-1] / 0.5
    assert kept.mean() > 0.6


def test_agreement_asks_a_student_with_its_memory():
    """A teacher that is the student itself, asked step by step from a memory that isn't empty, agrees everywhere."""
    student, rollout = students.make("gru:8", TWO, generator()), remembered_rollout()
    memory = start = {k: torch.randn(v.shape, generator=generator(5)) for k, v in student.init(4).items()}
    said = []
    for t in range(len(rollout.starts)):
        step, memory = student.act({"obs": rollout.obs["obs"][t]}, memory, rollout.starts[t])
        said.append(step.action.mode)
    teacher = Prediction(Categorical(torch.nn.functional.one_hot(torch.stack(said), 2) * 8.0))
    rollout = replace(rollout, teacher=teacher, memory=start, starts=rollout.starts)
    dataset = Dataset()
    dataset.append(rollout)
    assert phases.compared(student, rollout, dataset)["agreement"] == 1
    assert phases.compared(student, replace(rollout, starts=torch.ones_like(rollout.starts)), dataset)["agreement"] < 1
