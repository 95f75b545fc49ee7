"""Active labelling: which states are chosen, that no other is asked about, that labels are counted right, and that a run resumes the same."""

import math

import pytest
import torch
from test_distillation import Corridor, run, small, steer

from distillrl import choosing, rounds
from distillrl.actions import Bernoulli, Categorical, Deterministic, Gaussian, MultiCategorical
from distillrl.beginning import begin
from distillrl.checkpoints import resume, save
from distillrl.config import Phase
from distillrl.dataset import Dataset
from distillrl.errors import Misconfigured, Missing
from distillrl.records import ActionSpace, Prediction, Rollout, Spec
from distillrl.runs import Folder
from distillrl.settling import settle

KL = {"forward_kl": 1}
NONE = torch.empty(0, dtype=torch.int64)


class Says:
    """A policy that always says the same of row t: ``actions`` has [T, N] of them."""

    def __init__(self, action, space=None):
        self.action, self.spec = action, Spec({}, space or ActionSpace("discrete", n=2))

    def init(self, n):
        return {}

    def act(self, obs, memory, starts, wants=frozenset()):
        from distillrl.records import over_states

        return Prediction(over_states(lambda x: x.flatten(0, 1)[obs["i"].long()], self.action)), memory


def rollout(t=3, n=2, labelled=None):
    no = torch.zeros(t, n, dtype=torch.bool)
    valid = ~no
    valid[0, 1] = False
    obs = {"i": torch.cat([torch.arange(t * n).view(t, n), torch.zeros(1, n, dtype=torch.int64)])}
    return Rollout(obs, no, no.float(), no, no, no, valid, no, no if labelled is None else labelled, None, None, no)


def test_states_are_drawn_in_proportion_to_how_undecided_the_student_is():
    # Entropies: ln 2 twice (one of them labelled already, one that only resets), 0.33, 0.67, and 0 twice.
    p = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.6, 0.4]], [[1.0, 0.0], [1.0, 0.0]]]).clamp_min(1e-12)
    labelled = torch.zeros(3, 2, dtype=torch.bool)
    labelled[0, 0] = True
    generator, found = torch.Generator().manual_seed(0), torch.zeros(3, 2)
    for _ in range(2000):
        found += choosing.choose("entropy", rollout(labelled=labelled), [Says(Categorical(p.log()))], 1, generator, NONE)
    assert found[0].tolist() == [0, 0], "of [0, 0] the label is known, [0, 1] only resets"
    assert found[2].sum() < 5
    sure, unsure = (float(Categorical(torch.tensor([x, 1 - x]).log()).entropy()) for x in (0.9, 0.6))
    assert found[1, 1] / found[1].sum() == pytest.approx(unsure / (sure + unsure), abs=0.04)
    both = choosing.choose("entropy", rollout(labelled=labelled), [Says(Categorical(p.log()))], 2, generator, NONE)
    assert both[1].all()
    everything = choosing.choose("random", rollout(labelled=labelled), [], 99, torch.Generator(), NONE)
    assert everything.sum() == 4
    assert choosing.choose("random", rollout(), [], 0, torch.Generator(), NONE).sum() == 0


@pytest.mark.parametrize(
    ("one", "other", "right", "space"),
    [
        (Categorical(torch.tensor([0.0, -50.0])), Categorical(torch.tensor([-50.0, 0.0])), math.log(2), ActionSpace("discrete", n=2)),
        (Deterministic(torch.tensor(0)), Deterministic(torch.tensor(1)), math.log(2), ActionSpace("discrete", n=3)),
        (Bernoulli(torch.tensor([50.0, 50.0])), Bernoulli(torch.tensor([-50.0, 50.0])), math.log(2), ActionSpace("multibinary", (2,))),
        (MultiCategorical(torch.tensor([0.0, -50, 0, -50]), (2, 2)), MultiCategorical(torch.tensor([-50.0, 0, -50, 0]), (2, 2)), 2 * math.log(2), ActionSpace("multidiscrete", (2,), nvec=(2, 2))),
        # Actions 1 and −1 of a range from −2 to 2: ½ and −½ half ranges, whose variance is ¼.
        (Gaussian(torch.tensor([1.0]), torch.zeros(1), torch.tensor([-2.0]), torch.tensor([2.0])), Gaussian(torch.tensor([-1.0]), torch.zeros(1), torch.tensor([-2.0]), torch.tensor([2.0])), 0.25, ActionSpace("box", (1,), low=(-2.0,), high=(2.0,))),
    ],
)  # fmt: skip
def test_disagreement_by_hand(one, other, right, space):
    from distillrl.records import over_states

    wide = [Says(over_states(lambda x: x.expand(3, 2, *x.shape), a), space) for a in (one, other)]
    assert choosing.disagreement(rollout(), wide).flatten().tolist() == pytest.approx([right] * 6, abs=1e-5)
    assert choosing.disagreement(rollout(), [wide[0], wide[0]]).flatten().tolist() == pytest.approx([0] * 6, abs=1e-6)


def counting(kind="discrete"):
    asked = []

    def teacher(obs):
        asked.append(obs.clone())
        return steer(kind)(obs)

    return teacher, asked


@pytest.mark.parametrize(("how", "beta"), [("entropy", "0"), ("random", "0.5"), ("disagreement", "power(0)")])
def test_the_teacher_is_asked_about_chosen_and_driven_states_alone(tmp_path, how, beta):
    teacher, asked = counting()
    phase = Phase(beta=beta, choose=how, ask=0.2, first=20, steps=10, updates=2, committee=2, terms=KL)
    setup = settle(small(phase=(phase,), slots=4, labels=150, backend="gymnasium:1"), teacher, lambda: Corridor())
    state = begin(setup)
    folder = Folder.create(tmp_path / "r", "E")
    rounds.play(setup, state, folder)
    before, of_before = len(asked), state.progress.labels  # the first round is tried out again once the normaliser is measured
    state.progress = state.progress.__class__(**{**vars(state.progress), "round": 1})
    for _ in range(3):
        state.phase_round += 1
        rounds.play(setup, state, folder)
    rows = torch.cat(asked[before:])
    assert len(rows) == state.progress.labels - of_before == len(state.dataset) - of_before
    assert beta == "0.5" or len(torch.unique(rows, dim=0)) == len(rows), "no state twice, but where the teacher drove"
    assert state.progress.labels <= 150 < state.progress.env_steps
    told = state.dataset.at(state.dataset.rows)
    assert torch.equal(told.teacher.action.mode, steer("discrete")(told.obs["obs"]).argmax(-1))


def test_states_that_look_alike_are_asked_about_once():
    same = rollout()
    same.obs["i"][1] = same.obs["i"][2]
    mask = choosing.choose("random", same, [], 99, torch.Generator(), NONE)
    assert mask.sum() == 3
    assert mask[1:].sum(0).tolist() == [1, 1]
    assert choosing.choose("random", same, [], 99, torch.Generator(), choosing.keys(same)[1]).sum() == 1
    for x in (torch.zeros(4, 2, 4), torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4, 2, 5, 5, dtype=torch.float64)):
        same.obs["i"] = x
        x[1, 0] += 1
        found = choosing.keys(same)
        assert found.shape == (3, 2)
        assert len(found.unique()) == 2


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_a_run_on_a_budget_of_labels_learns(tmp_path, kind):
    result = run(tmp_path, kind, method="active", labels=600, env_steps=6_000, until="retention=0.9", verdict_episodes=6, select_episodes=6, backend="gymnasium:1")
    assert result.verdict["teacher_labels"] <= 600
    assert result.verdict["teacher_labels"] < result.verdict["env_steps"] / 2
    assert result.verdict["retention"]["value"] > 0.8


def test_where_all_episodes_end_at_once_a_teacher_that_drives_is_asked_for_an_action_all_the_same(tmp_path):
    result = run(tmp_path, method="behaviour-cloning", choose="random", env_steps=400, until="none", verdict_episodes=4, select_episodes=4)
    assert result.verdict["teacher_labels"] == result.verdict["env_steps"], "but steps that only reset are no labels"


def test_a_resumed_run_asks_and_learns_the_same(tmp_path):
    teacher, asked = counting()
    phase = Phase(beta="power(0)", choose="disagreement", ask=0.2, first=20, steps=10, updates=2, committee=2, terms=KL)
    setup = settle(small(phase=(phase,), slots=4, labels=90, backend="gymnasium:1"), teacher, lambda: Corridor())
    folder = Folder.create(tmp_path / "r", "E")
    folder.write_config(setup.config)
    state = begin(setup)
    rounds.play(setup, state, folder)
    save(state, folder)
    other, rows = resume(setup, folder), []
    for s in (state, other):
        s.phase_round = 1
        s.progress = s.progress.__class__(**{**vars(s.progress), "round": 1})
        del asked[:]
        rounds.play(setup, s, folder)
        rows.append(torch.cat(asked))
    assert torch.equal(*rows)
    for a, b in zip(state.committee[1].student.state_dict().values(), other.committee[1].student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_members_learn_from_halves_that_stay_the_same():
    data = Dataset()
    data.rows = torch.arange(4000)
    one, two = data.half(0).rows, data.half(1).rows
    assert abs(len(one) - 2000) < 150
    assert abs(len(set(one.tolist()) & set(two.tolist())) - 1000) < 150
    data.rows = torch.arange(100)
    assert set(data.half(0).rows.tolist()) == {r for r in one.tolist() if r < 100}


def test_what_can_not_be_chosen_is_said_before_round_0():
    def said(match, error=Misconfigured, student="mlp:8", kind="discrete", **phase):
        with pytest.raises(error, match=match):
            begin(settle(small(student=student, phase=(Phase(**{"terms": KL, **phase}),), slots=4, backend="gymnasium:1"), steer(kind), lambda: Corridor(kind)))

    said("did you mean 'entropy'", choose="entropi")
    said("ask = 0", choose="entropy", ask=0.0)
    said("disagreement.* is right", choose="entropy", kind="box", terms={"mse": 1})
    said("critical = true", choose="random", critical=True)
    said("learns from every state in turn", choose="random", terms={"distillation_reward": 1})
    said("students that learn by gradients", choose="disagreement", student="tree:leaves=8")
    with pytest.raises(Misconfigured, match="labels = 3 is less than one step"):
        settle(small(labels=3, slots=4), steer("discrete"), lambda: Corridor())
    with pytest.raises(Misconfigured, match="--choose = 'entropie'.*did you mean"):
        small(choose="entropie")
    remembers = Says(Categorical(torch.zeros(1, 1, 2)))
    remembers.init = lambda n: {"h": torch.zeros(n)}
    with pytest.raises(Missing, match="needs a teacher without memory"):
        choosing.check(Phase(choose="random"), None, remembers, frozenset())
