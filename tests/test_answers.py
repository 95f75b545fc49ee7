"""«Ship it?» answered for real runs: good, undertrained, brittle and overfitted students of discrete, continuous and image environments."""

from __future__ import annotations

import json

import pytest
from shipping_cases import Shown, teacher

import distillrl
from distillrl import costs, robustness, scratch
from distillrl.config import Config, Phase
from distillrl.errors import DistillError
from distillrl.evidence import from_scratch, gather
from distillrl.judging import judge
from distillrl.reading import read
from distillrl.reporting import report

STUDENTS = {"discrete": "mlp:16", "continuous": "mlp:", "images": "cnn:4k3s1:16"}
QUICK = {"until": "none", "env_steps": 1500, "slots": 10, "backend": "gymnasium:1", "verdict_episodes": 40, "select_episodes": 8}
ONE_SENSOR = {"discrete": {"see": "pick=0"}, "continuous": {"see": "pick=0"}, "images": {"see": "crop=0-0x0-0", "student": "mlp:4"}}
ANSWERS = {
    "good": ("ship", "no more than 2 % worse"),
    "undertrained": ("no", "more than 2 % worse than the teacher"),
    "brittle": ("no", "more brittle than its teacher under sensor dropout"),
    "overfitted": ("no", "worse outside of what it was distilled on"),
}


def distilled(out, kind, case):
    """A run of so many hundred steps; returns its teacher, which the report needs too."""
    hidden = case == "overfitted"
    sure = Phase(beta="power(0.7)", terms={"mse": "1"}, lr=0.02)
    short = Phase(beta="1", terms={"mse" if kind == "continuous" else "forward_kl": "1"}, updates=1, lr=1e-4)
    more = {
        "good": {"phase": (sure,)} if kind == "continuous" else {},
        "undertrained": {"phase": (short,), "rounds": 1},
        "brittle": {**({"phase": (sure,)} if kind == "continuous" else {}), **ONE_SENSOR[kind]},
        "overfitted": {"student": "mlp:16"} if kind == "continuous" else {},
    }[case]
    kwargs = {"kind": kind, "hidden": hidden, **({"levels": 10} if hidden else {})}
    knows = teacher(kind, hidden)
    distillrl.distill(knows, Shown, config=Config(**{"student": STUDENTS[kind], "env_kwargs": kwargs, **QUICK, **more}), out=out)
    return knows


@pytest.fixture(autouse=True)
def few_levels(monkeypatch):
    """Two disturbances at one level each, and no latencies, which take their time by the clock."""
    monkeypatch.setattr(costs, "measure", lambda policy: {"multiply_adds": costs.multiply_adds(policy)})
    for name in robustness.LEVELS:
        monkeypatch.setitem(robustness.LEVELS, name, {"sensor dropout": (0.2,), "observation noise": (0.1,)}.get(name, ()))


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("kind", STUDENTS)
def test_the_page_answers_right(tmp_path, kind, case):
    knows = distilled(tmp_path / "r", kind, case)
    gather(tmp_path / "r", teacher=knows, env=Shown, unseen={"levels": 0} if case == "overfitted" else None)
    judgement = judge(read(tmp_path / "r"))
    answer, says = ANSWERS[case]
    assert judgement.answer == answer, judgement.sentences
    assert says in " ".join(judgement.sentences[:2]), judgement.sentences
    if (kind, case) == ("images", "good"):  # the others’ pages are drawn in test_reporting.py
        assert f"</span> {judgement.headline}</h1>" in report(tmp_path / "r", measure="none").read_text()


def test_training_from_scratch_is_set_beside(tmp_path):
    run, told = tmp_path / "r", []
    knows = distilled(run, "discrete", "good")
    assert "--scratch 10 trains the same student from scratch" in report(run, measure="none").read_text()
    text = report(run, teacher=knows, env=Shown, scratch=1.2, show=told.append).read_text()
    found = read(run).evidence
    alone = found["scratch"]
    assert 1500 < alone["env_steps"] <= 1800
    assert read(run / "scratch").verdict["teacher_labels"] == 0
    assert alone["reached"]["0.9"]["student"]["env_steps"] <= 1500
    assert "steps, distilled" in text
    assert found["robustness"]
    rounds = sum("round" in row for row in told)
    assert rounds > 0
    from_scratch(run, 1.2, teacher=knows, env=Shown, show=told.append)
    assert sum("round" in row for row in told) == rounds, "a training that has ended isn't repeated"
    gather(run, teacher=knows, env=Shown)
    assert read(run).evidence["scratch"] == alone, "what was measured before is kept"
    (run / "student.safetensors").write_bytes((run / "scratch" / "student.safetensors").read_bytes())
    assert any("measured of another student" in p for p in read(run).problems)
    assert read(run).evidence == {}


def test_where_the_clock_ended_the_run_is_no_bound_of_training_from_scratch():
    anew = scratch._config(Config(rounds=5, last_round=3, labels=9), 100)
    assert (anew.rounds, anew.last_round, anew.labels, anew.env_steps) == (None, None, None, 100)


def test_what_can_not_be_trained_from_scratch_is_said_on_the_page(tmp_path):
    knows = distilled(tmp_path / "r", "discrete", "undertrained")
    config = (tmp_path / "r" / "config.toml").read_text()
    (tmp_path / "r" / "config.toml").write_text(config.replace('student = "mlp:16"', 'student = "tree:leaves=8"'))
    with pytest.raises(DistillError, match="learns by gradients"):
        from_scratch(tmp_path / "r", 1, teacher=knows, env=Shown)
    verdict = json.loads((tmp_path / "r" / "verdict.json").read_text())
    (tmp_path / "r" / "verdict.json").write_text(json.dumps({**verdict, "env_steps": None}))
    assert "The student was not trained from scratch: how many environment steps" in report(tmp_path / "r", teacher=knows, env=Shown, scratch=1).read_text()
    for wrong in ({"scratch": 0.0}, {"scratch": 2.0, "measure": "none"}):
        with pytest.raises(DistillError, match="a number of times the student"):
            report(tmp_path / "r", **wrong)
