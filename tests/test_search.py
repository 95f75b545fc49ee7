"""Search: stacked students learn as they would alone, races are decided by intervals, limits and bad words are said before anything learns."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from click.testing import CliRunner
from export_cases import observations
from test_compression import SPEC, rule

from distillrl import artifact, beginning, cohort, envs, evaluation, learn, limits, racing, search, settling, stats, students
from distillrl.cli import main
from distillrl.config import Config
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Failed, Misconfigured
from distillrl.racing import Entry
from distillrl.records import ActionSpace, Group, Progress, Spec
from distillrl.retaining import Finding
from distillrl.students.stacked import Stacked, alike

WORDS = ("mlp:", "mlp:4", "mlp:8x8", "mlp:12x8x4")
BOX = Spec({"a": Group((3,), "float32"), "b": Group((2,), "float32")}, ActionSpace("box", (2,), low=(-1.0, -1.0), high=(1.0, 1.0), dtype="float32"))


def family(spec, words=WORDS):
    made = [students.make(w, spec, torch.Generator().manual_seed(i)) for i, w in enumerate(words)]
    for m in made[1:]:
        m.sense = made[0].sense
    return made


@pytest.mark.parametrize("spec", [SPEC, BOX], ids=["discrete", "box of two groups"])
def test_stacked_students_say_what_each_says(spec):
    made = family(spec)
    assert alike(made)
    stacked = Stacked(made)
    obs = observations(spec, 50, 2)
    with torch.no_grad():
        raw, _ = stacked(stacked.see(obs, {}, None))
        for k, one in enumerate(made):
            action = one.act(obs, {}, None)[0].action
            assert torch.allclose(raw[k], action.logits if spec is SPEC else action.mean, atol=1e-6)
        stacked.weights.mul_(1.5)
        stacked.write_to(made)
        again, _ = stacked(stacked.see(obs, {}, None))
        for k, one in enumerate(made):
            action = one.act(obs, {}, None)[0].action
            assert torch.allclose(again[k], action.logits if spec is SPEC else action.mean, atol=1e-5)


def test_what_differs_is_not_stacked():
    assert not alike([students.make(w, SPEC, torch.Generator()) for w in ("mlp:8", "mlp:8:relu")])
    assert not alike([students.make("gru:4", SPEC, torch.Generator())])


def _settled(words=WORDS, env="CartPole-v1", teacher=rule):
    setup = settling.settle(Config(student=words[-1], env_steps=2000, slots=4, until="none"), teacher, env)
    return setup, beginning.begin(setup)


def test_each_learns_as_it_would_alone():
    setup, state = _settled()
    try:
        made = family(setup.spec)
        one = cohort.seated(setup, state, made)
        assert [type(x) for x in one.learners] == [cohort.Together]
        together = one.learners[0]
        alone = cohort._alone(setup, state, students.make(WORDS[2], setup.spec, torch.Generator().manual_seed(2))).gradient
        assert isinstance(alone, learn.Gradient)
        alone.student.sense = alone.averaged.sense = made[0].sense
        one.drive(4)
        with torch.inference_mode():
            rollout = state.drive.collect(16, settling_who(), setup.teacher, one, beginning.label_wants(setup, state), setup.seen)
        state.dataset.append(rollout)
        for _ in range(2):
            together.learn(state.dataset, Progress())
            alone.learn(state.dataset, Progress())
        mine, theirs = together.settle()[2].artifact_tensors(), alone.averaged.artifact_tensors()
        for name, value in theirs.items():
            assert torch.allclose(mine[name], value, atol=2e-4), name
    finally:
        state.drive.vector.close()


def settling_who():
    from distillrl.states import Who

    return Who(1.0)


def test_those_who_stay_learn_on_as_if_the_others_had_never_been():
    setup, state = _settled()
    try:
        one = cohort.seated(setup, state, family(setup.spec))
        one.drive(4)
        with torch.inference_mode():
            state.dataset.append(state.drive.collect(16, settling_who(), setup.teacher, one, beginning.label_wants(setup, state), setup.seen))
        whole = one.learners[0]
        whole.learn(state.dataset, Progress())
        less = whole.without({0, 1})
        drawn = whole.generator.get_state()
        whole.learn(state.dataset, Progress())
        wanted = [{k: v.clone() for k, v in n.artifact_tensors().items()} for n in whole.settle()[2:]]
        less.generator.set_state(drawn)
        less.learn(state.dataset, Progress())
        for found, right in zip(less.settle(), wanted, strict=True):
            for name, value in found.artifact_tensors().items():
                assert torch.allclose(value, right[name], atol=1e-5)
    finally:
        state.drive.vector.close()


def test_side_by_side_each_plays_the_same_episodes_as_alone():
    setup, state = _settled(("mlp:4", "mlp:8"))
    state.drive.vector.close()
    made = family(setup.spec, ("mlp:4", "mlp:8", "mlp:6"))
    options = EnvOptions("CartPole-v1", max_episode_steps=80)
    one = cohort.Cohort(setup.spec, [cohort.Together(made, state.gradient.terms, setup.config.phase[0], torch.Generator())])
    both = evaluation.play(one, options, 30, Seeds(3, "race", share=3), tell=one.own).returns.reshape(10, 3).T
    for k, policy in enumerate(made):
        assert list(both[k]) == list(evaluation.play(policy, options, 10, Seeds(3, "race")).returns)


# ── the race ──────────────────────────────────────────────────────────────────────────────────────────────────────


def entry(word: str, parameters: int, value: float, width: float, **more) -> Entry:
    return Entry(word, None, {"parameters": parameters, "bytes": 4 * parameters}, found=Finding(stats.Interval(value, value - width, value + width), 10, 0.0, None), **more)


def test_only_the_surely_worse_leave():
    entries = [entry("a", 10, 0.2, 0.1), entry("b", 20, 0.5, 0.6), entry("c", 40, 0.9, 0.05), entry("d", 80, 0.95, 0.05)]
    assert [e.word for e in racing.beaten(entries, 0.98)] == ["a"]  # b's interval reaches the aim
    assert racing.beaten(entries[:1], 0.98) == []
    assert [e.word for e in racing.promising([entry("x", 9, 0.99, 0.1), entry("y", 3, 0.985, 0.1), entry("z", 1, 0.97, 0.1)], 0.98)] == ["y", "x"]


def test_what_is_larger_than_one_that_holds_leaves():
    entries = [entry("a", 10, 0.5, 0.1), entry("b", 20, 1.0, 0.0, passed=True), entry("c", 40, 0.9, 0.05)]
    assert [e.word for e in racing.outgrown(entries)] == ["c"]
    assert racing.outgrown(entries[:1]) == []


# ── limits ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("text", "microseconds"), [("20us", 20), ("0.5 ms", 500), ("800ns", 0.8), ("2e-5s", 20), ("7µs", 7)])
def test_a_time_has_its_unit(text, microseconds):
    assert limits.duration(text) == pytest.approx(microseconds)


@pytest.mark.parametrize("text", ["20", "fast", "-3us", "0us", "1e400s", "us", "5 parsec"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(Misconfigured, match="20us"):
        limits.duration(text)


def test_sizes_and_words():
    assert limits.size("8kB") == 8000
    assert limits.size("2KiB") == 2048
    assert limits.words("mlp:8, mlp: , tree:leaves=8,depth=3 gru:4") == ("mlp:8", "mlp:", "tree:leaves=8,depth=3", "gru:4")
    for text in ("", "8x8", "mlp:8, mlp:8"):
        with pytest.raises(Misconfigured, match="--sizes"):
            limits.words(text)
    with pytest.raises(Misconfigured, match="8kB"):
        limits.size("many")


@pytest.mark.parametrize(("ask", "sentence"), [
    (["--max-parameters", "3"], "no size is within the limits"),
    (["--max-latency", "20"], "20us"),
    (["--latency-of", "pyton", "--max-latency", "20us"], "python"),
    (["--sizes", "mpl:8"], "mlp"),
    (["--retention", "0"], "share"),
    (["--method", "finetune"], "one phase"),
    (["--method", "late-start"], "(late)"),
    (["--method", "active"], "(choose)"),
])
def test_bad_options_are_sentences(ask, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("distillrl.search.settle", lambda config, teacher, env: settling.settle(config, rule, "CartPole-v1"))
    done = CliRunner().invoke(main, ["search", "t.zip", "--sizes", "mlp:4, mlp:8", "--out", str(tmp_path / "out"), *ask], standalone_mode=False)
    assert isinstance(done.exception, Misconfigured), done.output
    assert sentence in str(done.exception)
    assert not (tmp_path / "out").exists()


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────────


def found(out, sizes=("mlp:", "mlp:4", "mlp:8x8", "gru:4", "tree:leaves=6"), retention=0.8, **more):
    config = Config(env_steps=1200, max_episode_steps=40, slots=8)
    return search.search(rule, "CartPole-v1", retention=retention, sizes=sizes, episodes=20, out=out, config=config, **more)


def test_the_smallest_that_holds_is_an_ordinary_run(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "VERDICT_EPISODES", 5)
    monkeypatch.setattr(racing, "FIRST", 700)
    one = found(tmp_path / "one")
    assert one.reached
    assert one.verdict["student_family"] == min((r for r in one.frontier if r["passed"]), key=lambda r: r["parameters"])["student"]
    written = json.loads((tmp_path / "one" / "frontier.json").read_text())
    assert {r["student"] for r in written["sizes"]} == {"mlp:", "mlp:4", "mlp:8x8", "gru:4", "tree:leaves=6"}
    assert all(r["retention"] is not None for r in written["sizes"])
    assert (tmp_path / "one" / "frontier.svg").read_text().lstrip().startswith("<?xml")
    assert (tmp_path / "one" / "frontier.png").stat().st_size > 5000
    assert {p.name for p in (tmp_path / "one").iterdir()} >= {"config.toml", "metrics.jsonl", "student.safetensors", "verdict.json"}
    tree = next(r for r in written["sizes"] if r["student"].startswith("tree"))
    assert tree["parameters"] > 1, "a tree is weighed as it was grown"
    student = students.build(*artifact.load(tmp_path / "one" / "student.safetensors"))
    assert student.family == one.verdict["student_family"]
    assert student.acting_parameters() == one.verdict["search"]["parameters"]
    assert one.verdict["seconds"]["work"] > 0
    found(tmp_path / "two")
    assert (tmp_path / "one" / "student.safetensors").read_bytes() == (tmp_path / "two" / "student.safetensors").read_bytes()


def test_where_none_holds_it_says_which_came_nearest(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "VERDICT_EPISODES", 5)
    none = found(tmp_path / "none", sizes=("mlp:", "mlp:4"), retention=1.9)
    assert none.policy is None
    assert "No size holds it" in search.sentences(none)[0]
    assert not (tmp_path / "none" / "student.safetensors").exists()
    assert not envs.differences(SPEC, SPEC)


def test_what_is_over_a_limit_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "VERDICT_EPISODES", 5)
    one = found(tmp_path / "one", sizes=("mlp:", "mlp:64x64"), limits=limits.Limits(parameters=100, latency=1e5))
    row = next(r for r in one.frontier if r["student"] == "mlp:64x64")
    assert row["left"].startswith("over the limit")
    assert row["retention"] is None
    assert row["latency"] > 0


def stopped_after(rounds, monkeypatch):
    """Ctrl-C in the round of this number."""
    plain, done = search._round, []

    def one(race):
        done.append(1)
        if len(done) == rounds:
            signal.raise_signal(signal.SIGINT)
        plain(race)

    monkeypatch.setattr(search, "_round", one)


@pytest.mark.parametrize(("rounds", "first", "retention"), [(1, 700, 0.8), (2, 1, 1.05)])  # before the look that decides, and after one where none holds
def test_ctrl_c_leaves_what_was_measured_and_the_search_goes_on_to_the_same_bytes(rounds, first, retention, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "VERDICT_EPISODES", 3)
    monkeypatch.setattr(racing, "FIRST", first)
    sizes = ("mlp:", "mlp:4", "gru:4" if rounds > 1 else "mlp:8", "tree:leaves=6")
    whole = found(tmp_path / "whole", sizes, retention)
    with monkeypatch.context() as patched:
        stopped_after(rounds, patched)
        with pytest.raises(KeyboardInterrupt, match="search --resume"):
            found(tmp_path / "out", sizes, retention)
    written = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert written["winner"] is None
    assert any(r["history"] for r in written["sizes"]) == (rounds > 1)
    with pytest.raises(Misconfigured, match="--resume"):
        found(tmp_path / "out", sizes)
    weigh = search.cost

    def once(policy, header, how, needed):
        return weigh(policy, header, how, needed) if getattr(policy, "grown", False) and not needed else pytest.fail("a latency is measured once")

    monkeypatch.setattr(search, "cost", once)
    resumed = search.search(rule, "CartPole-v1", resume=tmp_path / "out")
    assert [r["history"] for r in resumed.frontier] == [r["history"] for r in whole.frontier]
    learnt = [[{k: v for k, v in json.loads(line).items() if "second" not in k} for line in (tmp_path / of / "metrics.jsonl").read_text().splitlines()] for of in ("whole", "out")]
    assert learnt[0] == learnt[1]
    if whole.reached:
        assert (tmp_path / "out" / "student.safetensors").read_bytes() == (tmp_path / "whole" / "student.safetensors").read_bytes()
    assert not (tmp_path / "out" / "checkpoint").exists()
    with pytest.raises(Misconfigured, match="has ended"):
        search.search(rule, "CartPole-v1", resume=tmp_path / "out")


def test_what_cannot_go_on_is_said(tmp_path):
    with pytest.raises(Misconfigured, match="no search was begun"):
        search.search(resume=tmp_path)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(Failed, match="damaged"):
        search.search(resume=tmp_path)


def test_where_fresh_episodes_disagree_the_next_larger_one_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "VERDICT_EPISODES", 5)
    monkeypatch.setattr(racing, "FIRST", 700)
    plain, asked = search._verdict, []

    def unlucky(race, student, entry):
        asked.append(entry.word)
        measured = plain(race, student, entry)
        return measured if len(asked) > 1 else {**measured, "retention": {"value": 0.5, "low": 0.4, "high": 0.6}}

    monkeypatch.setattr(search, "_verdict", unlucky)
    sizes = ("mlp:", "mlp:4", "mlp:8x8")
    one = found(tmp_path / "one", sizes, retention=0.7)
    rows = {r["student"]: r for r in one.frontier}
    assert one.reached
    assert len(asked) == 2
    assert one.verdict["student_family"] == asked[1]
    assert rows[asked[1]]["parameters"] > rows[asked[0]]["parameters"]
    assert rows[asked[0]]["left"] == "fresh episodes disagree: 50.0%"
    assert not rows[asked[0]]["passed"]
    assert asked[0] in search.sentences(one)[0]
    monkeypatch.setattr(search, "_verdict", lambda race, student, entry: {**plain(race, student, entry), "retention": {"value": 0.5, "low": 0.4, "high": 0.6}})
    none = found(tmp_path / "none", sizes, retention=0.7)
    assert not none.reached
    assert none.policy is not None
    assert "came nearest" in search.sentences(none)[-1]


def test_the_picture_names_what_lies_below_it(tmp_path):
    pytest.importorskip("matplotlib", reason="pip install 'distillrl[report]'")
    from distillrl.frontier import draw

    def size(word: str, parameters: int, value: float, passed: bool = False) -> dict[str, object]:
        return {"student": word, "parameters": parameters, "passed": passed, "retention": {"value": value, "low": value - 0.2, "high": min(1.0, value + 0.2)}}

    draw({"aim": 0.99, "winner": "mlp:", "sizes": [size("tree:leaves=4", 1, 0.1), size("mlp:", 10, 1.0, True), size("mlp:8", 58, 1.0)]}, tmp_path)
    text = (tmp_path / "frontier.svg").read_text()
    assert "tree:leaves=4: 10%" in text
    assert "(dashed): linear" in text
