"""The page: what it answers, what it does with a damaged folder, and how it looks to a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from evidence_cases import Levels, Sides, parity, sides

import distillrl
from distillrl import artifact, pictures
from distillrl.config import Config
from distillrl.errors import Misconfigured
from distillrl.judging import judge, wanted
from distillrl.reading import read
from distillrl.reporting import compare, report

pytest.importorskip("jinja2", reason="the report's extra is not installed: pip install 'distillrl[report]'")
pytest.importorskip("matplotlib", reason="the report's extra is not installed: pip install 'distillrl[report]'")

CONFIG = """student = "mlp:16x16"
method = "auto"
env = "LunarLander-v3"
teacher = "nowhere/teacher.zip"
seed = 0
"""
EVIL = "<script>alert(1)</script>"


def player(returns, parameters, latency):
    mean = float(np.mean(returns))
    span = {"mean": mean, "low": mean - 5, "high": mean + 5, "worst": float(np.min(returns)), "episodes": len(returns)}
    return {
        "return": {**span, "returns": list(map(float, returns))},
        "return_sampled": span,
        "parameters": parameters,
        "bytes": 4000,
        "latency_us": latency,
    }


def verdict(student_mean=250.0, episodes=50, noise=5.0):
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 20, episodes)
    return {
        "method": "auto", "seed": 0, "env": "LunarLander-v3", "env_steps": 7000, "teacher_labels": 7000, "rounds": 3, "kept_round": 2, "ended_by": "aim",
        "reached": True, "seconds": {"work": 1.1, "selecting": 2.0, "with_imports": 5.0}, "agreement": 0.97,
        "retention": {"value": 0.99, "low": 0.98, "high": 1.0}, "notes": [],
        "teacher": player(255 + luck, 69124, 80.0), "student": player(student_mean + luck + rng.normal(0, noise, episodes), 484, 30.0),
        "random": player(rng.normal(-180, 80, episodes), None, None),
    }  # fmt: skip


METRICS = [
    {"phase": 0, "round": i, "env_steps": 2048 * (i + 1), "labels": 2048 * (i + 1), "agreement": 0.5 + i / 10, "term.forward_kl": 0.1 / (i + 1), "term.value": 0.2,
     "share.forward_kl": 0.7, "share.value": 0.3, "seconds": 0.5 * i, **({"return.student": 200.0 + i, "return.teacher": 255.0, "retention": 0.9 + i / 50} if i else {})}
    for i in range(3)
]  # fmt: skip


def curve(name="observation noise", brittle=False, low=0.3):
    span = {"value": 250.0, "low": 240.0, "high": 260.0}
    worse = {"value": 90.0, "low": 60.0, "high": 120.0}
    sentence = "More brittle than its teacher under observation noise: at 0.1 (standard deviations) its return falls." if brittle else None
    points = [
        {"level": 0.0, "student": span, "teacher": span, "excess": None, "teacher_lost": 0.0},
        {
            "level": 0.1,
            "student": worse if brittle else span,
            "teacher": span,
            "excess": {"value": low + 0.1, "low": low if brittle else -0.1, "high": 0.6},
            "teacher_lost": 0.02,
        },
    ]
    return {"name": name, "unit": "standard deviations", "usual": 0.0, "points": points, "brittle": brittle, "sentence": sentence}


def evidence(brittle=False, overfitted=False, low=0.3):
    gap = {"value": 0.4, "low": 0.3, "high": 0.5} if overfitted else {"value": 0.0, "low": -0.01, "high": 0.01}
    both = {"student": {"value": 1.0, "low": 0.9, "high": 1.1}, "teacher": {"value": 1.0, "low": 0.9, "high": 1.1}}
    return {
        "robustness": {"episodes": 50, "curves": [curve(brittle=brittle, low=low), curve("action delay")], "left_out": [], "notes": []},
        "generalisation": {"episodes": 100, "same_environment": True, "gap": gap, "overfitted": overfitted, "seen": both, "unseen": both,
                           "sentence": "The student is worse outside of what it was distilled on." if overfitted else None},
    }  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A whole run folder, written by hand; its artifact is a real one."""
    return written(tmp_path / "runs" / "lander")


def written(folder):
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METRICS))
    (folder / "verdict.json").write_text(json.dumps(verdict()))
    student = sides()
    made = {
        **student.header(),
        "provenance": {
            "teacher": {"sha256": "ab" * 32, "format": "stable-baselines3", "algorithm": "PPO"},
            "versions": {"torch": "2.13.0"},
        },
    }
    artifact.save(folder / "student.safetensors", made, student.artifact_tensors())
    return folder


def write(folder, name, data):
    (folder / name).write_text(json.dumps(data))


def page_of(folder, **options):
    return report(folder, measure="none", **options).read_text()


class Strict(HTMLParser):
    """Fails where a tag isn't closed in its turn, and gathers text and addresses."""

    VOID = frozenset({"meta", "link", "img", "br", "path", "use", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.text, self.addresses, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in {"src", "href", "data", "action"} and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in {"src", "href"} and v]

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


# ── the answer ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "found", "answer", "says"),
    [
        ({}, evidence(), "ship", "no more than 2 % worse than the teacher (p < 0.001, 50 episodes)"),
        ({"student_mean": 140.0}, evidence(), "no", "more than 2 % worse"),
        ({}, evidence(brittle=True), "no", "But more brittle than its teacher under observation noise"),
        ({}, evidence(brittle=True, low=0.06), "ship", "A caution: more brittle"),
        ({}, evidence(overfitted=True), "no", "But the student is worse outside of what it was distilled on"),
        ({"episodes": 6, "noise": 60.0}, evidence(), "unknown", "6 episodes don’t show"),
    ],
)
def test_ship_or_not(run, changes, found, answer, says):
    write(run, "verdict.json", verdict(**changes))
    write(run, "evidence.json", found)
    judgement = judge(read(run))
    assert judgement.answer == answer
    assert any(says in s for s in judgement.sentences), judgement.sentences
    assert len(judgement.sentences) <= 3


def test_a_full_measurement_plays_what_the_test_needs_and_says_so(run):
    write(run, "verdict.json", verdict(250.0, noise=40.0))
    judgement = judge(read(run))
    needed = judgement.non_inferiority.needed
    assert 200 < needed < 2000
    assert wanted(judgement.non_inferiority) == needed
    assert judgement.sentences[-1] == f"Measure more: distillrl report {run} --full plays {needed:,} episodes of each."
    write(run, "verdict.json", verdict(249.5, noise=400.0))
    assert "plays 2,000 episodes" in judge(read(run)).sentences[-1]
    assert wanted(None) == 200


def test_episodes_that_the_student_fell_in_are_named(run):
    data = verdict()
    for i in (4, 7, 11, 23, 42):
        data["student"]["return"]["returns"][i] -= 200.0
    write(run, "verdict.json", data)
    judgement = judge(read(run))
    assert judgement.sentences[1].startswith("In 5 of 50 episodes the student earns far less than its teacher on the same seed")
    assert any("--episode" in c for c in judgement.cautions)
    (run / "config.toml").write_text(CONFIG + 'backend = "envpool"\n')
    write(run, "verdict.json", {**data, **{who: {**data[who], "return": {**data[who]["return"], "returns": data[who]["return"]["returns"] * 2}} for who in ("student", "teacher")}})
    assert not any("same seed" in s for s in judge(read(run)).sentences), "their episodes aren't the same"


def test_what_was_not_measured_is_said(run):
    judgement = judge(read(run))
    assert judgement.headline == "Ship it, as far as measured."
    assert judgement.sentences[1] == "Its robustness was not measured."


@pytest.mark.parametrize(
    ("backend", "episodes", "paired"), [("gymnasium:2", 80, True), ("envpool", 50, True), ("envpool", 80, False), ("auto", 80, True)]
)
def test_only_the_same_episodes_are_compared_in_pairs(run, backend, episodes, paired):
    write(run, "verdict.json", verdict(episodes=episodes))
    (run / "config.toml").write_text(CONFIG + f'backend = "{backend}"\n')
    assert read(run).paired is paired
    assert ("on the same episodes" in judge(read(run)).sentences[0]) is paired


@pytest.mark.parametrize(("backend", "told"), [("ale", True), ("gymnasium:2", False)])
def test_the_verdict_itself_says_whether_episodes_were_the_same(run, backend, told):
    write(run, "verdict.json", verdict(episodes=80) | {"paired": told})
    (run / "config.toml").write_text(CONFIG + f'backend = "{backend}"\n')
    assert read(run).paired is told


def test_a_teacher_like_a_random_policy_leaves_nothing_to_keep(run):
    data = verdict()
    data["teacher"] = data["random"] | {"parameters": 10, "latency_us": 3.0}
    write(run, "verdict.json", data)
    judgement = judge(read(run))
    assert judgement.answer == "unknown"
    assert "isn’t shown to be better than a random policy" in judgement.sentences[0]


def test_a_return_that_never_varies_is_said_to_be_so(run):
    data = verdict()
    for who in ("teacher", "student"):
        data[who]["return"]["returns"] = [500.0] * 50
    write(run, "verdict.json", data)
    judgement = judge(read(run))
    assert judgement.answer == "ship"
    assert any("width 0, which is no evidence" in c for c in judgement.cautions)


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_page_is_whole_and_needs_no_network(run):
    write(run, "evidence.json", evidence())
    text = page_of(run)
    parser = Strict()
    parser.feed(text)
    assert not parser.open
    assert all(a.startswith(("data:", "#")) for a in parser.addresses), [a for a in parser.addresses if not a.startswith(("data:", "#"))][
        :5
    ]
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert len(text) < 3_000_000
    said = " ".join(parser.text)
    for part in ("Ship it.", "Return", "How it learned", "What disturbs it", "What it has never seen", "Cost", "Passport", "ab" * 32):
        assert part in said
    assert f"distillrl distill --config {run / 'config.toml'}" in said
    assert parser.tags.count("svg") >= 8
    assert "Term: forward_kl" in said
    assert "Term: value" in said


def test_the_same_folder_gives_the_same_page(run):
    assert page_of(run) == page_of(run)


def test_stand_in_colours_and_mathematics_do_not_reach_the_page(run):
    write(run, "evidence.json", evidence())
    text = page_of(run)
    assert "#0102" not in text
    assert "mathdefault" not in text
    assert "matplotlib" not in text


def test_names_are_text_and_not_html(run):
    data = verdict()
    data["env"] = EVIL
    write(run, "verdict.json", data)
    write(run, "evidence.json", {**evidence(), "robustness": {**evidence()["robustness"], "curves": [curve(EVIL, brittle=True)]}})
    rows = [{**row, f"term.{EVIL}": 0.1} for row in METRICS]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page_of(run)
    assert "alert(1)" in text
    assert EVIL not in text


def test_a_film_in_the_folder_is_on_the_page(run):
    (run / "watch.gif").write_bytes(b"GIF89a")
    assert 'src="data:image/gif;base64,R0lGODlh"' in page_of(run)
    (run / "watch.mp4").write_bytes(b"mp4")
    assert '<video src="data:video/mp4;base64,' in page_of(run)


def test_success_has_a_column_where_the_environment_tells_it(run):
    assert ">success<" not in page_of(run)
    known = verdict()
    for who in ("teacher", "student"):
        known[who]["return"]["success"] = {"value": 0.96, "low": 0.9, "high": 0.99}
    write(run, "verdict.json", known)
    assert "96.0%" in page_of(run)
    assert ">success<" in page_of(run)


def test_few_episodes_are_marked(run):
    write(run, "verdict.json", verdict(episodes=6))
    text = page_of(run)
    assert 'class="few"' in text
    assert "rests on fewer than 20 episodes" in text


def damage_nan(folder):
    (folder / "metrics.jsonl").write_text(
        json.dumps(METRICS[0]) + "\n" + json.dumps({**METRICS[1], "term.forward_kl": float("nan")}) + "\n"
    )


def damage_version(folder):
    header, tensors = artifact.load(folder / "student.safetensors")
    from safetensors.torch import save

    header.pop("digest", None)
    (folder / "student.safetensors").write_bytes(
        save(tensors, {artifact.KEY: artifact.canonical({**header, "version": 99, "digest": "x"})})
    )


DAMAGES = {
    "no verdict": (lambda f: (f / "verdict.json").unlink(), "the run has not ended, or was broken off"),
    "half a verdict": (lambda f: (f / "verdict.json").write_text(json.dumps(verdict())[:300]), "verdict.json is damaged"),
    "a verdict of another kind": (lambda f: (f / "verdict.json").write_text("[1]"), "holds no JSON object"),
    "keys missing": (lambda f: (f / "verdict.json").write_text('{"env": "A", "student": {"return": null}}'), "only one"),
    "half a line": (lambda f: (f / "metrics.jsonl").write_text(json.dumps(METRICS[0]) + '\n{"round": 1, "env'), "its last line is cut off"),
    "no metrics": (lambda f: (f / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
    "empty metrics": (lambda f: (f / "metrics.jsonl").write_text(""), "no learning curves"),
    "NaN": (damage_nan, "term.forward_kl is NaN or infinite"),
    "a newer config": (lambda f: (f / "config.toml").write_text(CONFIG + 'sparkle = "yes"\n'), "sparkle"),
    "half a config": (lambda f: (f / "config.toml").write_text(CONFIG + "x ="), "config.toml is damaged"),
    "no config": (lambda f: (f / "config.toml").unlink(), "config.toml is missing"),
    "a newer artifact": (damage_version, "newer distillrl"),
    "half an artifact": (lambda f: (f / "student.safetensors").write_bytes((f / "student.safetensors").read_bytes()[:200]), "safetensors"),
    "no artifact": (lambda f: (f / "student.safetensors").unlink(), "there is no student yet"),
    "odd evidence": (lambda f: (f / "evidence.json").write_text('{"robustness": {"curves": []}, "fidelity": {}}'), "Passport"),
    "broken evidence": (lambda f: (f / "evidence.json").write_text('{"fide'), "evidence.json is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_becomes_sentences_and_nothing_else_is_lost(run, name):
    damage, says = DAMAGES[name]
    damage(run)
    text = page_of(run)
    parser = Strict()
    parser.feed(text)
    assert says in " ".join(parser.text) or name == "keys missing"
    assert "Passport" in text


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(Misconfigured, match="no such folder"):
        report(tmp_path / "none")
    with pytest.raises(Misconfigured, match="it has none of"):
        report(tmp_path)
    with pytest.raises(Misconfigured, match="one of quick, full, none"):
        report(tmp_path, measure="slowly")
    with pytest.raises(Misconfigured, match="between 0 and 1"):
        report(tmp_path, margin=2)
    with pytest.raises(Misconfigured, match="at least one run folder"):
        compare([])


def test_a_teacher_that_is_gone_is_said_and_the_page_comes(run):
    text = report(run).read_text()
    assert "Fidelity and robustness were not measured" in text
    assert "nowhere/teacher.zip" in text


def test_several_runs_side_by_side(run, tmp_path):
    folders = [run]
    others = [("auto", 252.0), ("auto", 251.0), ("behaviour-cloning", 200.0), ("behaviour-cloning", 190.0), ("behaviour-cloning", 180.0)]
    for i, (method, mean) in enumerate(others):
        other = tmp_path / "runs" / f"other{i}"
        shutil.copytree(run, other)
        write(
            other,
            "verdict.json",
            {**verdict(mean), "method": method, "retention": {"value": mean / 255, "low": mean / 255 - 0.02, "high": mean / 255 + 0.02}},
        )
        folders.append(other)
    (folders[-1] / "metrics.jsonl").unlink()
    path = compare(folders, tmp_path / "compare.html")
    parser = Strict()
    parser.feed(path.read_text())
    said = " ".join(parser.text)
    assert "Of 6 runs 3 may be shipped, 3 may not" in said
    for part in (
        "All of them",
        "What size buys",
        "Episode by episode",
        "Methods and students",
        "behaviour-cloning, mlp:16x16 over auto, mlp:16x16",
        "stable-baselines3 PPO",
        "other4: metrics.jsonl is missing",
    ):
        assert part in said


# ── measured from a real run ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """Ten levels learned by heart, in a second or two."""
    folder = tmp_path_factory.mktemp("runs") / "levels"
    config = Config(
        student="mlp:32x32",
        env_kwargs={"levels": 10},
        until="none",
        rounds=6,
        env_steps=3000,
        slots=8,
        backend="gymnasium:1",
        verdict_episodes=20,
    )
    distillrl.distill(parity, Levels, config=config, out=folder)
    return folder


def test_a_report_measures_what_was_not_measured_and_keeps_it(distilled):
    path = report(distilled, teacher=parity, env=Levels, unseen={"levels": 0})
    found = json.loads((distilled / "evidence.json").read_text())
    assert found["generalisation"]["overfitted"]
    assert found["fidelity"]["states"]["student"]["agreement"]["value"] > 0.9
    assert found["robustness"]["curves"]
    text = path.read_text()
    assert "Don’t ship it." in text
    before = (distilled / "evidence.json").read_bytes()
    report(distilled)
    assert (distilled / "evidence.json").read_bytes() == before


def test_a_run_of_objects_says_what_to_give(distilled, tmp_path):
    other = tmp_path / "copy"
    shutil.copytree(distilled, other)
    (other / "evidence.json").unlink(missing_ok=True)
    assert "give it with --env" in report(other).read_text()
    assert "give one with --teacher" in report(other, env=Levels).read_text()
    assert "Sides can&#39;t be made with" in report(other, env=Sides, teacher=parity).read_text()


# ── in a real browser ─────────────────────────────────────────────────────────────────────────────────────────────

CHROMIUM = next((p for p in (shutil.which("chromium"), shutil.which("chromium-browser"), shutil.which("google-chrome")) if p), None)


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium without a window, and without a network."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run's page and a comparison's."""
    folder = written(tmp_path_factory.mktemp("pages") / "lander")
    write(folder, "evidence.json", evidence(brittle=True))
    return [report(folder, measure="none").resolve().as_uri(), compare([folder, folder], folder / "compare.html").resolve().as_uri()]


def test_labels_of_runs_and_teachers_cover_neither_each_other_nor_dots():
    one = {"low": 0.9, "high": 1.0, "latency": 30.0}
    runs = [{**one, "x": 484 + i, "y": 0.95, "label": i + 11} for i in range(4)]
    teachers = [{**one, "x": x, "y": 1.0, "label": f"teacher {name}", "teacher": True} for x, name in ((69_124, "PPO"), (60_000, "DQN"), (90_000, "SAC"))]
    svg = pictures.frontier([*runs, *teachers], "parameters", "retention", "a title")
    boxes = []
    for anchor, x, y, text in re.findall(r'text-anchor: (start|end)[^>]*? x="([\d.]+)" y="([\d.]+)"[^>]*>(1[1-4]|teacher \w+)<', svg):
        width = 4 * len(text)
        left = float(x) - (width if anchor == "end" else 0)
        boxes.append((left, float(y) - 6, left + width, float(y)))
    assert len(boxes) == 7
    for i, a in enumerate(boxes):
        assert a[0] >= 0
        assert a[2] <= 252
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    assert "font-family" not in svg


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_complaint(pages, browser, width, scheme):
    for page in pages:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        tab, complaints, asked = context.new_page(), [], []
        tab.on("console", lambda message, kept=complaints: kept.append(message.text))
        tab.on("pageerror", lambda error, kept=complaints: kept.append(str(error)))
        tab.on("request", lambda request, kept=asked: kept.append(request.url))
        tab.goto(page)
        assert complaints == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        wide = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > innerWidth + 1).length"
        assert tab.evaluate(wide) == 0
        context.close()


def test_a_table_sorts_by_its_numbers(pages, browser):
    tab = browser.new_page()
    tab.goto(pages[0])
    head = tab.locator("#return thead th").nth(1)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    first = tab.locator("#return tbody tr").first.locator("th")
    assert first.inner_text() == "random"
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert first.inner_text() in {"teacher", "teacher, sampled"}
    tab.close()


def test_its_colours_change_and_can_be_read(pages, browser):
    context = browser.new_context(color_scheme="light")
    tab = context.new_page()
    tab.goto(pages[0])
    contrast = """() => {
        const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => { x /= 255; return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; });
                             return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
        const of = (a, b) => { const x = light(a), y = light(b); return (Math.max(x, y) + .05) / (Math.min(x, y) + .05); };
        const style = e => getComputedStyle(document.querySelector(e));
        const card = style('.banner').backgroundColor;
        return [of(style('.banner p').color, card), of(style('.banner h1').color, card), of(style('figcaption').color, card), of(style('nav a').color, style('body').backgroundColor)];
    }"""
    before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert min(tab.evaluate(contrast)) >= 4.5
    tab.click("#theme")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert min(tab.evaluate(contrast)) >= 4.5
    context.close()


# ── from the command line ─────────────────────────────────────────────────────────────────────────────────────────


def call(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "distillrl", *map(str, words)], check=False, capture_output=True, text=True, timeout=240, cwd=cwd
    )


def test_the_verbs_work_and_say_what_is_wrong_without_a_traceback(run, tmp_path):
    made = call("report", run, "--as-is", "--out", tmp_path / "page.html", cwd=tmp_path)
    assert made.stdout.strip() == str(tmp_path / "page.html"), made.stderr
    assert "Ship it" in (tmp_path / "page.html").read_text()
    side = call("compare", run, run, cwd=tmp_path)
    assert (tmp_path / "compare.html").is_file(), side.stderr
    for words, says in (
        (("report", tmp_path / "none"), "no such folder"),
        (("report", run, "--margin", "3"), "between 0 and 1"),
        (("watch", run / "student.safetensors", "--env", "CartPole-v1"), "does not fit CartPole-v1"),
    ):
        wrong = call(*words, cwd=tmp_path)
        assert wrong.returncode == 2
        assert says in wrong.stderr
        assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("verb", ["report", "compare", "watch"])
def test_help_imports_no_torch(verb):
    code = f"import sys; import distillrl.cli as c; c.main(['{verb}', '--help'], standalone_mode=False); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
