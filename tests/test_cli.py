"""The command line as a user meets it: real processes, exit codes, no tracebacks."""

import inspect
import json
import subprocess
import sys

import pytest

from distillrl import artifact


def call(*words, timeout=240, cwd=None):
    return subprocess.run([sys.executable, "-m", "distillrl", *map(str, words)], capture_output=True, text=True, timeout=timeout, cwd=cwd)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, lander):
    out = tmp_path_factory.mktemp("runs") / "lander"
    fast = out.parent / "fast.toml"
    fast.write_text("verdict_episodes = 4\nselect_episodes = 2\nuntil = 'none'\n")
    return call("distill", lander, "--env", "LunarLander-v3", "--env-steps", "2500", "--config", fast, "--out", out), out


def test_help_is_quick_and_imports_no_torch():
    code = "import sys; import distillrl.cli as c; c.main(['--help'], standalone_mode=False); assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules"
    for verb in ("", "distill", "evaluate", "info"):
        subprocess.run([sys.executable, "-c", code.replace("['--help']", repr([*verb.split(), "--help"]))], check=True, capture_output=True)
    assert call("--version").stdout.startswith("distillrl, version 0")


def test_distill_prints_a_verdict_and_plain_lines(ran):
    result, out = ran
    assert result.returncode == 0, result.stderr
    assert "retention" in result.stdout
    assert "agreement" in result.stdout
    assert "round    0" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    assert {p.name for p in out.iterdir()} == {"config.toml", "metrics.jsonl", "student.safetensors", "verdict.json"}


def test_short_of_its_aim_is_exit_code_1_and_says_what_to_try(tmp_path, lander):
    fast = tmp_path / "fast.toml"
    fast.write_text("verdict_episodes = 2\nselect_episodes = 2\n")
    result = call("distill", lander, "--env", "LunarLander-v3", "--env-steps", "1100", "--until", "return=900", "--quiet", "--config", fast, "--out", tmp_path / "r")
    assert result.returncode == 1
    assert "short of its aim" in result.stderr
    assert "--env-steps" in result.stderr


def test_evaluate_and_info_take_students_and_teachers(ran, lander):
    _, out = ran
    student = out / "student.safetensors"
    shape = json.loads(call("evaluate", student, "--teacher", lander, "--env", "LunarLander-v3", "--episodes", "3", "--json").stdout)
    verdict = json.loads((out / "verdict.json").read_text())
    assert set(shape) >= {"method", "seed", "env", "env_steps", "teacher_labels", "seconds", "agreement", "retention", "teacher", "student", "random"}
    assert shape["method"] is None
    assert set(shape["student"]) == set(verdict["student"])
    alone = json.loads(call("evaluate", lander, "--env", "LunarLander-v3", "--episodes", "2", "--json").stdout)
    assert alone["teacher"] is None
    assert alone["retention"] is None
    told = call("info", student).stdout
    assert "mlp:16x16" in told
    assert "484" in told
    assert json.loads(call("info", lander, "--json").stdout)["algorithm"] == "PPO"


def test_show_prints_toml_that_is_read_back(lander, tmp_path):
    shown = call("distill", lander, "--env", "LunarLander-v3", "--method", "policy-distillation", "--show")
    assert shown.returncode == 0, shown.stderr
    assert "[[phase]]" in shown.stdout
    file = tmp_path / "c.toml"
    file.write_text(shown.stdout)
    assert call("distill", "--config", file, "--show").stdout == shown.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["distill", "nowhere.zip", "--env", "CartPole-v1"], "no file 'nowhere.zip'"),
        (["distill", "LANDER", "--env", "CartPole-v1"], "float32[8]"),
        (["distill", "LANDER", "--env", "LunarLander-v33"], "LunarLander-v3"),
        (["distill", "LANDER"], "--env"),
        (["distill", "LANDER", "--env", "LunarLander-v3", "--studnet", "mlp:4"], "--student"),
        (["distill", "LANDER", "--env", "LunarLander-v3", "--student", "lpm:4"], "mlp"),
        (["distill", "LANDER", "--env", "LunarLander-v3", "--method", "dager"], "dagger"),
        (["distill", "LANDER", "--env", "LunarLander-v3", "--until", "0.99"], "retention=0.99"),
        (["distill", "LANDER", "--env", "LunarLander-v3", "--env-steps", "0"], "above 0"),
        (["distill", "LANDER", "--env", "LunarLander-v3", "--env-kwargs", "gravity"], "name=value"),
        (["distill", "LANDER", "--env", "LunarLander-v3", "--terms", "forward_kl: linear(1"], "linear(1"),
        (["distill", "--config", "nowhere.toml"], "can't be read"),
        (["distill", "--resume", "nowhere"], "no run folder"),
        (["distill", "LANDER", "--resume", "nowhere"], "--resume"),
        (["evaluate", "LANDER", "--env", "CartPole-v1"], "float32[4]"),
        (["info", "LICENSE"], "no teacher"),
        (["distill", "--teachers", "LICENSE", "--env", "CartPole-v1"], "--teachers a.zip,b.zip"),
        (["distill", "LANDER", "--dispatch", "obs[0]:0"], "--teachers a.zip,b.zip"),
    ],
)  # fmt: skip
def test_bad_input_is_a_sentence_and_exit_code_2(words, told, lander):
    root = lander.parents[1]
    result = call(*[lander if w == "LANDER" else w for w in words], cwd=root)
    assert result.returncode == 2, result.stderr
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_damaged_artifacts_are_refused(ran, tmp_path):
    good = (ran[1] / "student.safetensors").read_bytes()
    length = int.from_bytes(good[:8], "little")
    cases = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "altered": good[:-1] + bytes([good[-1] ^ 1]),
        "oversized": (1 << 60).to_bytes(8, "little") + good[8:],
        "not-json": good[:8] + b"x" * length + good[8 + length :],
    }
    for name, data in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(artifact.Failed):
            artifact.load(path)
    result = call("info", tmp_path / "altered.safetensors")
    assert result.returncode == 2
    assert "altered" in result.stderr


def test_wrong_shapes_nan_and_newer_versions_are_refused(ran, tmp_path):
    from distillrl import students

    header, tensors = artifact.load(ran[1] / "student.safetensors")
    path = tmp_path / "s.safetensors"

    def refused(h, t, words):
        artifact.save(path, h, t)
        with pytest.raises(artifact.Failed, match=words):
            students.build(*artifact.load(path))

    name = "out.weight"
    refused(header, {**tensors, name: tensors[name][:, :1].contiguous()}, "its header says")
    refused(header, {**tensors, name: tensors[name] * float("nan")}, "NaN")
    refused(header, {k: v for k, v in tensors.items() if k != name}, "missing")
    refused({**header, "family": "mpl:3"}, tensors, "header is damaged")
    refused({**header, "spec": {}}, tensors, "header is damaged")
    data = artifact.dumps(header, tensors).replace(b'\\"version\\":1', b'\\"version\\":9')
    path.write_bytes(data)
    with pytest.raises(artifact.Failed, match="newer"):
        artifact.load(path)




def test_every_verb_takes_the_options_that_it_shows():
    from distillrl.cli import main

    for name, command in main.commands.items():
        given, taken = {p.name for p in command.params}, inspect.signature(command.callback).parameters
        open_ = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        assert open_ or given == set(taken), (name, given ^ set(taken))
        assert given >= {n for n, p in taken.items() if p.kind is not p.VAR_KEYWORD}, name


def test_evaluate_info_and_record_take_several_teachers(ran, lander, tmp_path):
    _, out = ran
    several = ["--teachers", f"{lander},{lander}", "--env", "LunarLander-v3"]
    alone = json.loads(call("evaluate", *several, "--combine", "product", "--episodes", "2", "--json").stdout)
    assert alone["student"]["parameters"] == 2 * json.loads(call("info", lander, "--json").stdout)["parameters"]
    beside = json.loads(call("evaluate", out / "student.safetensors", *several, "--dispatch", "obs[0]<0:0, else:1", "--episodes", "2", "--json").stdout)
    assert beside["teacher"]["return"]["mean"] == alone["student"]["return"]["mean"]  # whichever is asked, it is the same one
    assert "2 teachers: product" in call("info", *several, "--combine", "product").stdout
    made = call("record", *several, "--episodes", "1", "--out", tmp_path / "play")
    assert made.returncode == 0, made.stderr
    for words, told in (
        (["evaluate"], "name POLICY"),
        (["evaluate", "a", "--combine", "product"], "neither was given"),
        (["evaluate", "a", "--teacher", "b", "--teachers", "c,d"], "both were given"),
        (["info", "--teachers", "a"], "several teachers are named with"),
        (["record", "--teachers", "a,b", "--combine", "best", "--dispatch", "0", "--out", "x"], "one of them says"),
    ):
        bad = call(*words)
        assert bad.returncode == 2, words
        assert told in bad.stderr, bad.stderr
