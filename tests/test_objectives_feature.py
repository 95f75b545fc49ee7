"""Objectives on features: golden values by hand, gradients, and that what is learnt along learns."""

import math

import pytest
import torch

from distillrl import objectives
from distillrl.errors import Misconfigured, Missing
from distillrl.objectives import feature
from distillrl.records import Batch, Prediction

NAMES = [name for name, row in objectives.TABLE.items() if row.source.startswith("feature:")]


def t(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def sees(features, **more):
    return Prediction(features={"0": features}, **more)


def batch(features, weight=None, **more):
    return Batch({}, sees(features, **more), weight)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_hint_golden_value():
    student, teacher = sees(t([1.0, 2.0])), batch(t([0.0, 4.0]))
    loss = objectives.make("hint", {}, student, teacher, generator())
    assert not list(loss.parameters())  # sizes agree: nothing between
    assert loss(student, teacher).item() == pytest.approx(0.5 * (1 + 4) / 2)
    wider = batch(t([0.0, 4.0, 1.0]))
    loss = objectives.make("hint", {}, student, wider, generator())
    with torch.no_grad():
        loss.regressor.weight.copy_(t([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]))
    assert loss(student, wider).item() == pytest.approx(0.5 * (1 + 4 + 4) / 3)  # (1, 2, 3) against (0, 4, 1)


def test_hints_layers_are_learnt_reproducibly():
    x = randn(64, 3)
    student, teacher = sees(x), batch(torch.tanh(x @ randn(3, 5, seed=1)))
    for name, options in (("hint", {}), ("hint", {"always": True, "layer": "0"}), ("feature_regression", {"hidden": 32})):
        loss, same = (objectives.make(name, options, student, teacher, generator(2)) for _ in range(2))
        assert torch.equal(loss(student, teacher), same(student, teacher))
        first = loss(student, teacher).mean().item()
        optimiser = torch.optim.Adam(loss.parameters(), lr=0.02)
        for _ in range(200):
            optimiser.zero_grad()
            loss(student, teacher).mean().backward()
            optimiser.step()
        assert loss(student, teacher).mean().item() < first / 3


def test_bilinear_golden_value():
    student, teacher = sees(t([1.0, 2.0])), batch(t([0.0]), q=t([2.0]))
    loss = objectives.make("bilinear", {"penalty": 0.1, "scale": 1.0}, student, teacher, generator())
    with torch.no_grad():
        loss.w.copy_(t([[0.5, 0.0], [0.0, 0.5]]))
    # φᵀWφ = ½ · 1 + ½ · 4 = 2.5 against 2; ‖W‖² = ½
    assert loss(student, teacher).item() == pytest.approx(0.25 + 0.05)
    with_q = sees(t([1.0, 2.0]), q=t([5.0]))
    assert loss(with_q, teacher).item() == pytest.approx(0.3 + 9)
    only_value = batch(t([0.0]), value=torch.tensor([2.0], dtype=torch.float64))
    assert loss(sees(t([1.0, 2.0]), value=torch.tensor([3.0], dtype=torch.float64)), only_value).item() == pytest.approx(0.3 + 1)
    with pytest.raises(Missing, match=r"bilinear needs the teacher's `q` or `value`"):
        objectives.make("bilinear", {}, student, batch(t([0.0])), generator())


def test_attention_golden_values():
    # Squares (9, 16) and (16, 9), each over √337: 2 · 7² / 337
    loss = feature.attention_transfer(sees(t([3.0, 4.0])), batch(t([4.0, 3.0])))
    assert loss.item() == pytest.approx(98 / 337)
    # Maps: two channels of a 1 × 2 picture give Σ c² = (1 + 4, 0 + 4) = (5, 4); the teacher's, of 1 × 4, (8, 2, 4, 4) → means (5, 4)
    mine = torch.tensor([[[[1.0, 0.0]], [[2.0, 2.0]]]])
    theirs = torch.tensor([[[[8.0, 2.0, 4.0, 4.0]]]]).sqrt()
    assert feature.attention_transfer(sees(mine), batch(theirs)).item() == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(Misconfigured, match=r"layer is \[2\], the teacher's \[3\].*cka"):
        feature.attention_transfer(sees(t([1.0, 2.0])), batch(t([1.0, 2.0, 3.0])))


def test_rkd_golden_values():
    # On a line: distances 1, 3, 2 over their mean 2 against 1, 2, 1 over 4/3: ½ (¼², 0, ¼²) in the mean
    student, teacher = sees(t([0.0], [1.0], [3.0])), batch(t([0.0], [1.0], [2.0]))
    assert feature.rkd_distance(student, teacher).item() == pytest.approx(0.5 * (2 / 16) / 3)
    # A right triangle with cos 0, √½, √½ against an equilateral one with ½ at each corner
    right = sees(t([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    equilateral = batch(t([0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]))
    golden = 0.5 * (0.25 + 2 * (math.sqrt(0.5) - 0.5) ** 2) / 3
    assert feature.rkd_angle(right, equilateral).item() == pytest.approx(golden)


def test_correlation_golden_value():
    # The student sees one direction (k = 1), the teacher two at a right angle (k = e^{−0.4 · 2}): two of four pairs differ
    student, teacher = sees(t([1.0, 0.0], [2.0, 0.0])), batch(t([1.0, 0.0], [0.0, 3.0]))
    assert feature.correlation(student, teacher).item() == pytest.approx((1 - math.exp(-0.8)) ** 2 / 2)


def test_cka_is_zero_under_rotation_and_scale_and_one_where_unrelated():
    x = randn(50, 3)
    rotation = torch.linalg.qr(randn(3, 3, seed=1))[0]
    assert feature.cka(sees(2.5 * x @ rotation + 1), batch(x)).item() == pytest.approx(0.0, abs=1e-9)
    # Columns at right angles, centred already: XᵀY = 0
    assert feature.cka(sees(t([1.0], [-1.0], [0.0], [0.0])), batch(t([0.0], [0.0], [1.0], [-1.0]))).item() == pytest.approx(1.0)
    # Y = (x, z): ‖XᵀY‖² = 4, ‖XᵀX‖ = 2, ‖YᵀY‖ = √8
    both = batch(t([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]))
    assert feature.cka(sees(t([1.0], [-1.0], [0.0], [0.0])), both).item() == pytest.approx(1 - 4 / (2 * math.sqrt(8)))


def test_contrastive_golden_value_and_memory():
    student, teacher = sees(t([3.0, 0.0])), batch(t([2.0, 0.0]))
    loss = objectives.make("crd", {"width": 2, "bank": 1, "temperature": 1.0}, student, teacher, generator())
    with torch.no_grad():
        loss.of_student.weight.copy_(torch.eye(2))
        loss.of_teacher.weight.copy_(torch.eye(2))
        for bank in (loss.bank_student, loss.bank_teacher):
            bank.copy_(t([0.0, 1.0]))
    # sᵀt = 1, bank at a right angle: −log(e / (e + 1)) both ways; then the bank holds the state itself: log 2
    assert loss(student, teacher).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert loss(student, teacher).item() == pytest.approx(math.log(2))
    bigger = objectives.make("crd", {"bank": 3}, student, teacher, generator())
    before = bigger.bank_teacher.clone()
    many = Batch({}, sees(randn(5, 2)), torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]))
    bigger(sees(randn(5, 2, seed=1)), many).sum().backward()
    assert int(bigger.at) == 2  # the two states that count
    assert torch.equal(bigger.bank_teacher[2], before[2])
    with torch.no_grad():
        bigger(sees(randn(5, 2, seed=1)), many)
    assert int(bigger.at) == 2  # looking teaches nothing
    assert "bank_teacher" in bigger.state_dict()


def test_contrastive_learns_to_tell_states_apart():
    x = randn(32, 4)
    student, teacher = sees(x), batch(x @ randn(4, 6, seed=1))
    loss = objectives.make("crd", {"width": 8, "bank": 64}, student, teacher, generator())
    first = loss(student, teacher).mean().item()
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.01)
    for step in range(100):
        rows = slice(16 * (step % 2), 16 * (step % 2) + 16)
        optimiser.zero_grad()
        loss(sees(x[rows]), batch(teacher.teacher.features["0"][rows])).mean().backward()
        optimiser.step()
    assert loss(student, teacher).mean().item() < first - 0.5


def test_adversarial_golden_value_and_separate_gradients():
    features = randn(4, 2).requires_grad_()
    student, teacher = sees(features), batch(randn(4, 3, seed=1), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    loss = objectives.make("adversarial", {"penalty": 2.0}, student, teacher, generator())
    with torch.no_grad():
        for p in loss.own_parameters():
            p.zero_()
    # D = 0: softplus(0) = log 2 for the student; twice that for D; its slope is 0
    torch.testing.assert_close(loss(student, teacher), torch.full((4,), math.log(2), dtype=torch.float64))
    assert loss.own_loss(student, teacher).item() == pytest.approx(2 * math.log(2))
    loss = objectives.make("adversarial", {}, student, teacher, generator())
    loss(student, teacher).sum().backward()
    assert all(p.grad is None for p in loss.own_parameters())
    assert loss.regressor.weight.grad is not None
    seen, loss.regressor.weight.grad = features.grad.clone(), None
    loss.own_loss(student, teacher).backward()
    assert torch.equal(features.grad, seen)
    assert loss.regressor.weight.grad is None
    assert all(p.grad is not None for p in loss.own_parameters())


def test_adversarial_penalty_golden_value():
    student, teacher = sees(t([0.0])), batch(t([0.0]))
    loss = objectives.make("adversarial", {"hidden": 1, "penalty": 2.0}, student, teacher, generator())
    with torch.no_grad():  # D(x) = 3 · relu(x + 1): D(0) = 3, slope 3
        for p, number in zip(loss.discriminator.parameters(), (1.0, 1.0, 3.0, 0.0), strict=True):
            p.fill_(number)
    golden = math.log(1 + math.exp(3)) + math.log(1 + math.exp(-3)) + 0.5 * 2.0 * 9
    assert loss.own_loss(student, teacher).item() == pytest.approx(golden)
    assert loss(student, teacher).item() == pytest.approx(math.log(1 + math.exp(-3)))


def test_adversarial_training_moves_the_students_features_to_the_teachers():
    teacher = batch(randn(256, 2) * 0.3 + 2.0)
    mine = (randn(256, 2, seed=1) * 0.3).requires_grad_()
    shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = objectives.make("adversarial", {}, sees(mine), teacher, generator())
    students, critics = torch.optim.Adam([shift], lr=0.05), torch.optim.Adam(loss.own_parameters(), lr=0.01)
    for _ in range(200):
        critics.zero_grad()
        loss.own_loss(sees(mine.detach() + shift), teacher).backward()
        critics.step()
        students.zero_grad()
        loss(sees(mine.detach() + shift), teacher).mean().backward()
        students.step()
    assert (mine.detach() + shift).mean(0).sub(2.0).abs().max().item() < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_gradients_shapes_and_layers(name):
    options = {"layer": "0"} if "layer" in objectives.TABLE[name].options else {}
    same = name == "attention_transfer"
    x, y = randn(6, 3, seed=3).requires_grad_(), randn(6, 3 if same else 4, seed=4)
    teacher = batch(y, torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]), q=randn(6, 2, seed=5))
    loss = objectives.make(name, options, sees(x), teacher, generator())
    if isinstance(loss, torch.nn.Module):
        loss.eval()
    out = loss(sees(x), teacher)
    assert out.shape == ((6,) if objectives.TABLE[name].per_state else ())
    assert torch.autograd.gradcheck(lambda v: loss(sees(v), teacher), x)
    if "layer" in objectives.TABLE[name].options:
        with pytest.raises(Misconfigured, match=r"'pi' is no layer of this teacher .* has 0"):
            objectives.make(name, {"layer": "pi"}, sees(x), teacher, generator())(sees(x), teacher)
    with pytest.raises(Missing, match=r"needs `features`, but this student gives only nothing"):
        objectives.make(name, options, Prediction(), teacher, generator())(Prediction(), teacher)


@pytest.mark.parametrize("name", [n for n in NAMES if not objectives.TABLE[n].per_state])
def test_states_of_weight_0_are_left_out_of_what_is_about_the_batch(name):
    x, y = randn(8, 3, seed=3), randn(8, 4, seed=4)
    loss = getattr(feature, objectives.TABLE[name].source.split(":")[1])
    kept = loss(sees(x), batch(y, torch.tensor([1.0] * 5 + [0.0] * 3)))
    assert kept.item() == pytest.approx(loss(sees(x[:5]), batch(y[:5])).item())
    sequences = Batch({}, sees(y.view(4, 2, 4)), torch.ones(4, 2))
    assert loss(sees(x.view(4, 2, 3)), sequences).item() == pytest.approx(loss(sees(x), batch(y)).item())
    assert math.isfinite(loss(sees(x[:1]), batch(y[:1])).item())
    assert math.isfinite(loss(sees(torch.zeros(3, 3)), batch(torch.zeros(3, 4))).item())


def test_last_is_by_number_and_maps_are_flattened():
    student = Prediction(features={"2": torch.zeros(1, 2), "10": torch.ones(1, 2)})
    teacher = Batch({}, Prediction(features={"conv": torch.zeros(1, 2, 3, 3)}))
    loss = objectives.make("hint", {}, student, teacher, generator())
    assert loss.regressor.weight.shape == (18, 2)
    assert loss(student, teacher).item() == pytest.approx(0.5 * loss.regressor.weight.sum(1).square().mean().item(), rel=1e-5)
