"""Fitted families beside the tree: they learn what is there, come back from their files, and say truly what they do."""

import shutil
import subprocess

import numpy as np
import pytest
import torch

from distillrl import artifact, students
from distillrl.errors import Failed, Misconfigured
from distillrl.records import ActionSpace, Group, Spec
from distillrl.students import telling
from distillrl.students.growing import Examples

pytest.importorskip("sklearn")
FOUR = Spec({"obs": Group((4,), "float32")}, ActionSpace("discrete", n=3, start=1))
BOX = Spec({"obs": Group((4,), "float32")}, ActionSpace("box", (2,), low=(-1.0, -1.0), high=(1.0, 1.0), dtype="float32"))
MANY = Spec({"obs": Group((4,), "float32")}, ActionSpace("multibinary", (2,), n=2))
WORDS = ["tree:leaves=12", "forest:trees=4,leaves=12", "linear-tree:leaves=4", "linear:terms=3", "poly:degree=2,terms=8"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some(spec, count=3000, seed=1):
    x = torch.randn(count, 4, generator=generator(seed))
    if spec.action.kind == "discrete":
        action = (x[:, 0] + 0.5 * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()
    else:
        action = torch.stack([0.3 * x[:, 0] - 0.2 * x[:, 3], 0.2 * x[:, 1] * x[:, 2]], -1).clamp(-1, 1)
    return Examples(x, action, None, None)


def fitted(word, spec):
    policy = students.make(word, spec, generator())
    policy.model.fit(some(spec), generator(2))
    return policy


def played(policy, x):
    return policy.act({"obs": x}, {}, None)[0].action.mode


@pytest.mark.parametrize(("word", "least"), list(zip(WORDS, [0.85, 0.87, 0.85, 0.7, 0.7], strict=True)))
def test_each_learns_a_choice(word, least):
    fresh = some(FOUR, seed=5)
    assert float((played(fitted(word, FOUR), fresh.x) == fresh.action).float().mean()) > least


@pytest.mark.parametrize(("word", "most"), list(zip(WORDS, [0.25, 0.2, 0.2, 0.25, 0.05], strict=True)))
def test_each_learns_quantities(word, most):
    fresh = some(BOX, seed=5)
    assert float((played(fitted(word, BOX), fresh.x) - fresh.action).square().mean().sqrt()) < most


@pytest.mark.parametrize("spec", [FOUR, BOX], ids=["choice", "quantities"])
@pytest.mark.parametrize("word", WORDS)
def test_it_comes_back_and_two_fits_are_equal(word, spec, tmp_path):
    policy = fitted(word, spec)
    artifact.write_bytes(tmp_path / "p.safetensors", artifact.dumps(policy.header(), policy.artifact_tensors()))
    again = students.build(*artifact.load(tmp_path / "p.safetensors"))
    x = torch.randn(100, 4, generator=generator(3))
    assert torch.equal(played(again, x), played(policy, x))
    assert artifact.dumps(fitted(word, spec).header(), fitted(word, spec).artifact_tensors()) == (tmp_path / "p.safetensors").read_bytes()


@pytest.mark.parametrize("spec", [FOUR, BOX], ids=["choice", "quantities"])
@pytest.mark.parametrize("word", WORDS)
def test_its_python_text_drawing_and_reasons_are_what_it_does(word, spec):
    policy, scope = fitted(word, spec), {}
    told = telling.teller(policy)
    exec(told.as_python(policy), scope)
    x = torch.randn(100, 4, generator=generator(3))
    mine = np.array([scope["act"](row) for row in x.tolist()], dtype=np.float64)
    theirs = played(policy, x).double().numpy() + spec.action.start
    assert np.allclose(mine, theirs, atol=1e-4)
    why = telling.why(policy, {"obs": x[0]})
    assert why[-1].startswith(f"action {int(theirs[0])}" if spec is FOUR else "action [")
    assert told.as_svg(policy).startswith("<svg")
    assert "obs[0]" in told.as_text(policy)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_its_c_is_what_it_does(tmp_path):
    x = torch.randn(60, 4, generator=generator(3))
    rows = ",".join("{" + ",".join(f"{v!r}f" for v in row) + "}" for row in x.tolist())
    parts, calls, right = [], [], []
    for i, (word, spec) in enumerate((w, s) for w in WORDS for s in (FOUR, BOX)):
        policy = fitted(word, spec)
        code = telling.teller(policy).as_c(policy)
        for name in ("act", *(f"tree_{k}" for k in range(1, 5))):
            code = code.replace(f"{name}(", f"p{i}_{name}(")
        parts.append(code)
        one = f'printf("%d\\n", p{i}_act(x[n]));' if spec is FOUR else f'{{ float a[2]; p{i}_act(x[n], a); printf("%.9g %.9g\\n", a[0], a[1]); }}'
        calls.append(f"for (int n = 0; n < 60; n++) {one}")
        right += [" ".join(f"{v:.9g}" for v in np.atleast_1d(row)) for row in played(policy, x).double().numpy() + spec.action.start]
    (tmp_path / "p.c").write_text(f"#include <stdio.h>\n{''.join(parts)}\nstatic const float x[60][4] = {{{rows}}};\nint main(void) {{ {' '.join(calls)} return 0; }}\n")
    subprocess.run(["gcc", "-std=c99", "-Wall", "-Werror", "-ffp-contract=off", "-o", "p", "p.c", "-lm"], cwd=tmp_path, check=True)
    said = subprocess.run([tmp_path / "p"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == len(right)
    for mine, theirs in zip(said, right, strict=True):
        assert np.allclose([float(v) for v in mine.split()], [float(v) for v in theirs.split()], atol=1e-4)


@pytest.mark.parametrize("word", ["forest:trees=1", "forest:leaves=0", "linear-tree:leafs=3", "linear:terms=0", "poly:degree=7", "poly:degree=2,resample=1", "linear:weight=x"])
def test_a_word_that_is_none_is_refused(word):
    with pytest.raises(Misconfigured, match=r"right|did you mean"):
        students.check(word)


@pytest.mark.parametrize("word", ["forest:", "linear-tree:", "linear:", "poly:"])
def test_actions_of_several_whole_numbers_are_refused_with_what_takes_them(word):
    with pytest.raises(Misconfigured, match="tree: takes it"):
        students.make(word, MANY, generator())


def test_a_polynomial_of_too_many_monomials_is_refused():
    with pytest.raises(Misconfigured, match="at most 4096"):
        students.make("poly:degree=6", Spec({"obs": Group((40,), "float32")}, FOUR.action), generator())


@pytest.mark.parametrize(("word", "name"), [("forest:trees=2", "model.trees.1.feature"), ("linear-tree:leaves=4", "model.tree.branches"), ("poly:terms=4", "model.places")])
def test_damaged_ones_are_refused(word, name):
    policy = fitted(word, FOUR)
    tensors = {k: v.clone() for k, v in policy.artifact_tensors().items()}
    tensors[name].view(-1)[0] = 99
    with pytest.raises(Failed, match="damaged"):
        students.build(policy.header(), tensors)


def test_an_action_that_the_teacher_never_chose_is_never_chosen():
    given = some(FOUR)
    policy = students.make("linear:", FOUR, generator())
    policy.model.fit(Examples(given.x, given.action.clamp(max=1), None, None), generator())
    assert set(played(policy, given.x * 50).tolist()) == {0, 1}
