"""Trees: what they say by hand, that they equal scikit-learn's, and that a damaged one is refused."""

import itertools
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from distillrl import students
from distillrl.actions import Categorical, Gaussian
from distillrl.dataset import Dataset
from distillrl.errors import Failed, Misconfigured
from distillrl.records import ActionSpace, Group, Prediction, Progress, Rollout, Spec
from distillrl.students import tree_text

TEACHER = Path(__file__).parents[1] / "examples" / "ppo_lunar.zip"
FOUR = Spec({"obs": Group((4,), "float32")}, ActionSpace("discrete", n=3))
BOX = Spec({"obs": Group((4,), "float32")}, ActionSpace("box", (2,), low=(-1.0, -1.0), high=(1.0, 1.0), dtype="float32"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(spec=FOUR):
    """x[2] ≤ 0.5 → action 1; else x[0] ≤ -1 → action 0, else action 2."""
    tree = students.make("tree:leaves=3", spec, generator())
    tree.model.become(
        torch.tensor([2, 0, 0, 0, 0]),
        torch.tensor([0.5, 0, -1, 0, 0]),
        torch.tensor([[1, 2], [1, 1], [3, 4], [3, 3], [4, 4]]),
        torch.tensor([[0, 0, 0.0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0.25, 0, 0.75]]),
    )
    return tree


def rollout(x, teacher):
    steps, slots = x.shape[0] - 1, x.shape[1]
    no = torch.zeros(steps, slots, dtype=torch.bool)
    return Rollout(
        {"obs": x}, torch.zeros(steps, slots), torch.zeros(steps, slots), no, no, no.clone(), ~no, torch.ones(steps, slots, dtype=torch.int8), ~no, teacher, None,
        torch.zeros(steps, slots, dtype=torch.int64),
    )  # fmt: skip


def test_a_tree_by_hand_decides_counts_and_explains():
    tree = by_hand()
    x = torch.tensor([[0, 0, 0.5, 0], [-1, 0, 0.6, 0], [0, 0, 0.6, 0]])
    assert tree.act({"obs": x}, {}, None)[0].action.mode.tolist() == [1, 0, 2]
    assert tree.model.leaves == 3
    assert tree.acting_parameters() == 2 * 2 + 3
    assert tree_text.as_text(tree).splitlines()[0] == "obs[2] <= 0.5?"
    assert tree_text.path(tree, x[2]) == ["obs[2] = 0.6 > 0.5", "obs[0] = 0 > -1", "action 2 (75 % of the states here)"]


def test_its_python_and_its_drawing_are_complete():
    tree = by_hand()
    scope = {}
    exec(tree_text.as_python(tree), scope)
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    assert [scope["act"](row) for row in x] == tree.act({"obs": torch.from_numpy(x)}, {}, None)[0].action.mode.tolist()
    assert tree_text.as_svg(tree).count("<rect") == 1 + 5
    assert tree_text.as_c(tree).count("return") == 3


def test_a_deep_drawing_has_a_row_a_leaf_and_no_box_on_another():
    pytest.importorskip("sklearn")
    from distillrl.students.growing import Examples

    tree, x = students.make("tree:leaves=64", FOUR, generator()), torch.randn(4000, 4, generator=generator(1))
    tree.model.fit(Examples(x, ((x.prod(-1) * 3).long() % 3), None, None), generator())
    page = ElementTree.fromstring(tree_text.as_svg(tree))
    boxes = [[float(rect.get(k)) for k in ("x", "y", "width", "height")] for rect in page.findall(".//{*}rect") if rect.get("x")]
    assert len(boxes) == 127 == len(tree.model.feature)
    assert not any(abs(a[1] - b[1]) < a[3] and a[0] < b[0] + b[2] and b[0] < a[0] + a[2] for a, b in itertools.combinations(boxes, 2))
    assert float(page.get("height")) < 64 * 25 + 50
    assert max(x + width for x, _, width, _ in boxes) < float(page.get("width"))
    texts = ["".join(t.itertext()) for t in page.findall(".//{*}text")]
    assert sum(t.startswith("action") for t in texts) == 64


@pytest.mark.parametrize(("name", "value"), [("branches", -1), ("branches", 0), ("branches", 99), ("feature", 4), ("feature", -1)])
def test_a_damaged_tree_is_refused(name, value):
    tree = by_hand()
    tensors = {k: v.clone() for k, v in tree.artifact_tensors().items()}
    tensors[f"model.{name}"].view(-1)[4 if name == "branches" else 0] = value
    with pytest.raises(Failed, match="tree is damaged"):
        students.build(tree.header(), tensors)


@pytest.mark.parametrize("word", ["tree:leaves=1", "tree:leafs=8", "tree:depth=0", "tree:weight=x", "tree:leaves=0x8", "tree"])
def test_a_word_that_is_no_tree_is_refused(word):
    with pytest.raises(Misconfigured, match=r"leaves= from 2|did you mean|tree:leaves=64"):
        students.check(word)


@pytest.mark.parametrize("word", ["tree:leaves=6", "tree:leaves=6,resample", "tree:leaves=6,weight=none", "tree:leaves=6,grow=40"])
def test_a_grown_tree_has_its_leaves_and_learns_what_is_there(word):
    pytest.importorskip("sklearn")
    from distillrl.refit import Refit

    tree = students.make(word, FOUR, generator())
    x = torch.randn(101, 8, 4, generator=generator(2))
    best = (x[:-1, :, 0] > 0).long() + (x[:-1, :, 1] > 0.3).long()
    dataset = Dataset()
    dataset.append(rollout(x, Prediction(Categorical(torch.nn.functional.one_hot(best, 3) * 5.0))))
    learner = Refit(tree, frozenset({"action"}), generator(3))
    assert learner.learn(dataset, Progress())["term.refit"] < 0.05
    assert 4 <= tree.model.leaves <= 6
    other = students.make(word, FOUR, generator())
    Refit(other, frozenset({"action"}), generator(3)).learn(dataset, Progress())
    assert all(torch.equal(a, b) for a, b in zip(tree.state_dict().values(), other.state_dict().values(), strict=True))


def test_every_threshold_asks_what_scikit_learn_asks():
    trees = pytest.importorskip("sklearn.tree")
    from distillrl.students.growing import floor32

    x = np.random.default_rng(1).normal(size=(3000, 4)).astype(np.float32)
    made = trees.DecisionTreeClassifier(max_leaf_nodes=200, random_state=0).fit(x, (x.prod(1) > 0).astype(int))
    inner = made.tree_.children_left >= 0
    for feature, threshold in zip(made.tree_.feature[inner], made.tree_.threshold[inner], strict=True):
        assert np.array_equal(x[:, feature] <= threshold, x[:, feature] <= floor32(np.asarray(threshold)))


def test_a_regression_tree_for_quantities():
    pytest.importorskip("sklearn")
    from distillrl.refit import Refit

    tree = students.make("tree:leaves=64", BOX, generator())
    x = torch.randn(201, 8, 4, generator=generator(2))
    mean = torch.stack([x[:-1, ..., 0].sign() * 0.5, x[:-1, ..., 1].sign() * 0.25], -1)
    low, high = torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])
    dataset = Dataset()
    dataset.append(rollout(x, Prediction(Gaussian(mean, torch.zeros_like(mean), low, high))))
    Refit(tree, frozenset({"action"}), generator()).learn(dataset, Progress())
    assert tree.act({"obs": torch.tensor([[1.0, -1, 0, 0]])}, {}, None)[0].action.mode.tolist() == [[0.5, -0.25]]


def test_cutting_back_by_hand():
    """Node 0 has the leaves 1 and 2 below; 2 has 3 and 4. Cutting 2 costs 1 error for one leaf, cutting 0 costs 9 / 2 for each."""
    from distillrl.students import growing

    yes, no = np.array([1, -1, 3, -1, -1]), np.array([2, -1, 4, -1, -1])
    error = np.array([10.0, 0, 2, 1, 0])
    assert [c.tolist() for c in growing.cut_back(yes, no, error, 2)] == [[1, -1, -1, -1, -1], [2, -1, -1, -1, -1]]
    assert [c.tolist() for c in growing.cut_back(yes, no, error, 3)] == [yes.tolist(), no.tolist()]
    assert growing.cut_back(yes, no, error, 1)[0].tolist() == [-1] * 5


def test_a_tree_for_a_method_of_gradients_is_refused_with_those_that_suit():
    from distillrl import distillation
    from distillrl.config import Config
    from distillrl.errors import Misconfigured

    for name in ("ppd", "kickstarting", "fitnets"):
        with pytest.raises(Misconfigured, match="is grown.*viper-tree"):
            distillation.expanded(Config(teacher=str(TEACHER), env="LunarLander-v3", student="tree:leaves=8", method=name))


def test_of_several_tries_the_one_that_plays_best_goes_on(monkeypatch):
    """Eight fits to samples of the same states, all different; their play is set here, and noisier the fewer the episodes."""
    pytest.importorskip("sklearn")
    from types import SimpleNamespace

    from distillrl import evaluation, selecting
    from distillrl.config import Config
    from distillrl.envs import Seeds
    from distillrl.refit import Refit

    tree = students.make("tree:leaves=6,tries=8", FOUR, generator())
    x = torch.randn(101, 8, 4, generator=generator(2))
    dataset = Dataset()
    dataset.append(rollout(x, Prediction(Categorical(torch.nn.functional.one_hot((x[:-1].prod(-1) > 0).long(), 3) * 5.0))))
    learner, seen = Refit(tree, frozenset({"action"}), generator(3)), {}
    learner.learn(dataset, Progress())
    made = learner.candidates()
    assert len({tuple(c.model.threshold.tolist()) for c in made}) == 8
    monkeypatch.setattr(learner, "candidates", lambda: made)

    def play(policy, options, episodes, seeds):
        number = next(i for i, c in enumerate(made) if c is policy)
        seen.setdefault(number, []).append(episodes)
        return SimpleNamespace(returns=np.full(episodes, float(number % 6)), steps=10 * episodes)

    monkeypatch.setattr(evaluation, "play", play)
    state = SimpleNamespace(evaluation_steps=0, baseline={})
    best = made[5].model
    selecting._take_best(SimpleNamespace(config=Config(select_episodes=20), options=None, spec=FOUR), state, learner, Seeds(0, "select"))
    assert learner.student.model is best
    assert sorted(map(len, seen.values())) == [1, 1, 1, 1, 2, 2, 2, 2], "half of them played on"
    assert state.evaluation_steps == 10 * (8 * 10 + 4 * 20)
