"""Who drives step by step: late starts, the teacher's rescue with two bounds, and DART's noise by the student's error."""

from itertools import pairwise

import pytest
import torch
from test_distillation import Corridor, small, steer

from distillrl import config as configuration
from distillrl import rescuing, weights
from distillrl.actions import Bernoulli, Categorical, Deterministic, Gaussian
from distillrl.beginning import begin
from distillrl.config import Phase
from distillrl.errors import Misconfigured, Missing
from distillrl.policies import distance
from distillrl.records import Prediction, Progress
from distillrl.rescuing import Rescue
from distillrl.settling import settle
from distillrl.states import Who

MSE = {"mse": 1}


def says(action, **more):
    return Prediction(action, **more)


def test_trust_by_hand():
    theirs = Categorical(torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log())
    assert rescuing.agreement(says(theirs), says(Deterministic(torch.tensor([0, 1])))).tolist() == pytest.approx([1, 0.25])
    low, high = torch.tensor([-2.0, -2.0]), torch.tensor([2.0, 2.0])
    box = [Gaussian(torch.tensor([m]), torch.zeros(1, 2), low, high) for m in ([0.0, 0.0], [1.0, -0.4])]
    assert rescuing.agreement(*map(says, box)).tolist() == pytest.approx([0.75])
    on = [Bernoulli(torch.tensor([m])) for m in ([5.0, 5.0], [5.0, -5.0])]
    assert rescuing.agreement(*map(says, on)).tolist() == [0.5]
    assert rescuing.agreement(*(says(Deterministic(torch.tensor([x, 1]))) for x in (0, 1))).tolist() == [0, 1]
    assert distance(*map(says, reversed(box))).tolist() == pytest.approx([((0.5**2 + 0.2**2) / 2) ** 0.5])
    assert distance(*map(says, on)) is None


def test_two_bounds_and_a_number_of_steps_keep_it_from_flickering():
    rescue, bounds, held, seen = Rescue("agreement", 0.5, 0.9, 3), torch.tensor([0.5, 0.9]), torch.zeros(1, dtype=torch.int64), []
    for trust in (0.6, 0.4, 1.0, 1.0, 0.6, 0.8, 0.95, 0.6, 0.4):
        held = rescuing.taken(rescue, torch.tensor([trust]), bounds, held)
        seen.append(bool(held > 0))
    # It falls at 0.4, holds for three steps whatever follows, stays while below 0.9, and at 0.6 the student may go on driving.
    assert seen == [False, True, True, True, True, True, False, False, True]


def test_values_take_over_by_their_place_among_those_seen():
    label = says(None, value=torch.arange(10.0).view(5, 2))
    valid = torch.ones(5, 2, dtype=torch.bool)
    assert rescuing.levels(label, valid, Rescue("value", 0.0, 1.0, 1)).tolist() == [0, 9]
    assert rescuing.value(says(None, q=torch.tensor([[1.0, 3.0]]))).tolist() == [3]
    with pytest.raises(Missing, match="needs the teacher's `value` or `q`"):
        rescuing.value(says(None))


def driven(who, kind="box", rounds=1, steps=60, slots=4, student=None):
    setup = settle(small(phase=(Phase(beta="1", terms=MSE),), slots=slots, backend="gymnasium:1"), steer(kind), lambda: Corridor(kind))
    state = begin(setup)
    for _ in range(rounds):
        with torch.inference_mode():
            rollout = state.drive.collect(steps, who, setup.teacher, student or state.student, frozenset({"action"}), setup.seen)
    return rollout, state


def test_a_late_start_hands_over_once_an_episode():
    rollout, _ = driven(Who(0.0, late=6), steps=100)
    shares = []
    for slot in range(4):
        begins = rollout.starts[:, slot].nonzero().flatten().tolist()
        for begin_, end in pairwise(begins):
            teacher = (rollout.driver[begin_ : end - 1, slot] == 0).long()
            assert (teacher.diff() <= 0).all(), "once the student drives it goes on"
            shares.append(int(teacher.sum()))
    assert set(shares) <= set(range(7))
    assert len(set(shares)) > 3
    assert torch.equal(rollout.labelled, torch.ones_like(rollout.labelled))


def test_the_teacher_rescues_where_they_differ():
    class Wrong:
        """Pushes as hard as it can to the right."""

        def init(self, n):
            return {}

        def act(self, obs, memory, starts, wants):
            n = len(obs["obs"])
            return says(Deterministic(torch.ones(n, 1), torch.tensor([-1.0]), torch.tensor([1.0]))), memory

    rollout, state = driven(Who(0.0, rescue=Rescue("agreement", 0.5, 0.9, 2)), student=Wrong())
    theirs = rollout.teacher.action.mode[..., 0]
    rescued, alike = rollout.driver == 0, 1 - (theirs - 1).abs() / 2
    assert bool(rescued[(alike < 0.5) & rollout.valid].all())
    assert bool((~rescued).any())
    played = torch.where(rescued, theirs, torch.ones_like(theirs))
    assert torch.equal(played[rollout.valid], rollout.action[..., 0][rollout.valid])
    again = state.drive.state_dict()
    assert {"late", "held", "levels"} <= set(again)


@pytest.mark.parametrize("phase", [Phase(late="8", terms=MSE, updates=2), Phase(rescue="agreement(below=0.9, above=0.95)", terms=MSE, updates=2)])
def test_a_resumed_run_hands_over_at_the_same_steps(tmp_path, phase):
    from distillrl import rounds
    from distillrl.checkpoints import resume, save
    from distillrl.runs import Folder

    setup = settle(small(phase=(phase,), slots=4, backend="gymnasium:1"), steer("box"), lambda: Corridor("box"))
    folder = Folder.create(tmp_path / "r", "E")
    folder.write_config(setup.config)
    state = begin(setup)
    rounds.play(setup, state, folder)
    save(state, folder)
    other = resume(setup, folder)
    for s in (state, other):
        rounds.play(setup, s, folder)
    for a, b in zip(state.student.state_dict().values(), other.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_noise_by_the_students_error():
    error = weights.parse("error(2, 0.3)")
    assert error(Progress()) == 0.3
    assert error(Progress(metrics={"error": 0.2})) == pytest.approx(0.4)
    assert error(Progress(metrics={"error": 0.9})) == 1
    assert str(weights.parse("error(2)")) == "error(2, 0.2)"


def test_what_is_wrong_is_said():
    assert configuration.rescue("value(steps=3)") == ("value", 0.1, 0.3, 3)
    for wrong, match in [
        ("agrement", "did you mean 'agreement'"),
        ("agreement(below=2)", "0 ≤ below ≤ above ≤ 1"),
        ("agreement(below=0.9, above=0.5)", "0 ≤ below ≤ above ≤ 1"),
        ("value(steps=0.5)", "whole number of steps"),
        ("agreement(bellow=0.5)", "did you mean 'below'"),
        ("agreement(below=much)", "no number"),
    ]:
        with pytest.raises(Misconfigured, match=match):
            Phase(rescue=wrong)
    with pytest.raises(Missing, match="this teacher gives only `action`; rescue by agreement would do"):
        begin(settle(small(phase=(Phase(rescue="value", terms=MSE),), slots=4), steer("box"), lambda: Corridor("box")))
    with pytest.raises(Misconfigured, match="none left to choose"):
        settle(small(phase=(Phase(rescue="agreement", choose="random", terms=MSE),), slots=4), steer("box"), lambda: Corridor("box"))
