"""Whole runs with teachers of other kinds: a server that is asked about no state twice, several teachers, options kept in config.toml."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distillrl
from distillrl import config as configuration
from distillrl.config import Config
from distillrl.errors import Failed, Misconfigured

SMALL = Config(env="CartPole-v1", student="mlp:8", until="none", rounds=3, slots=4, select_episodes=2, verdict_episodes=2, checkpoint_seconds=1000.0, max_episode_steps=40)


class Served(ThreadingHTTPServer):
    """A model of the Open Inference Protocol: pushes the cart to where the pole leans; ``asked`` are all states it saw."""

    daemon_threads = True

    def __init__(self, dies_after: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[float, ...]] = []
        self.dies_after = dies_after
        self.together = self.most_together = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v2/models/expert"


class Handler(BaseHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        self._send(200, {"name": "expert", "inputs": [{"name": "obs", "datatype": "FP32", "shape": [-1, 4]}], "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}]})

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"][0]
        x = np.array(told["data"], np.float32).reshape(told["shape"])
        with self.server.lock:
            self.server.asked += [tuple(row.tolist()) for row in x]
            dead = self.server.dies_after is not None and len(self.server.asked) > self.server.dies_after
        lean = x[:, 2] + 0.3 * x[:, 3]
        logits = np.stack([-5 * lean, 5 * lean], 1)
        self._send(400 if dead else 200, {"outputs": [{"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": logits.reshape(-1).tolist()}]})

    def _send(self, status: int, told: Any) -> None:
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Any:
    running: list[Served] = []

    def start(dies_after: int | None = None) -> Served:
        made = Served(dies_after)
        running.append(made)
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return made

    yield start
    for made in running:
        made.shutdown()
        made.server_close()


def test_a_resumed_run_asks_a_server_about_no_state_twice(tmp_path: Path, serve: Callable[..., Served]) -> None:
    server = serve()
    whole = distillrl.distill(config=replace(SMALL, teacher=server.address), out=tmp_path / "whole")
    states = server.asked
    assert len(states) == len(set(states)) == whole.verdict["teacher_cost"]["asked"]
    assert whole.verdict["teacher_cost"]["remembered"] > 0
    assert len((tmp_path / "whole" / "answers.jsonl").read_text().splitlines()) == len(states)

    server.asked, server.dies_after = [], len(states) // 2
    with pytest.raises(Failed, match="doesn't answer"):
        distillrl.distill(config=replace(SMALL, teacher=server.address), out=tmp_path / "cut")
    answered = len((tmp_path / "cut" / "answers.jsonl").read_text().splitlines())
    refused = len(server.asked) - answered
    server.dies_after = None
    resumed = distillrl.distill(resume=tmp_path / "cut")
    assert answered > 0
    assert len(server.asked) == len(states) + refused
    assert set(server.asked) == set(states)
    assert (tmp_path / "cut" / "student.safetensors").read_bytes() == (tmp_path / "whole" / "student.safetensors").read_bytes()
    assert resumed.verdict["teacher_labels"] == whole.verdict["teacher_labels"]


def test_answers_that_were_damaged_are_asked_again(tmp_path: Path, serve: Callable[..., Served]) -> None:
    server = serve()
    distillrl.distill(config=replace(SMALL, teacher=server.address, rounds=1), out=tmp_path / "first")
    lines = (tmp_path / "first" / "answers.jsonl").read_text().splitlines()
    lines[0] = lines[0].replace("logits float32", "logits object")
    lines[1] = lines[1].replace("logits float32 ", "logits float32 !")
    (tmp_path / "first" / "verdict.json").unlink()
    (tmp_path / "first" / "answers.jsonl").write_text("\n".join(lines) + '\n{"question": "cut sh')
    server.asked = []
    again = distillrl.distill(resume=tmp_path / "first")
    assert len(server.asked) == again.verdict["teacher_cost"]["asked"] == 2


def test_several_teachers_are_chosen_by_the_observation(tmp_path: Path, lander: Path) -> None:
    several = replace(SMALL, env="LunarLander-v3", teachers=(str(lander), str(lander)), dispatch="obs[0]<0:0, else:1", rounds=1)
    run = distillrl.distill(config=several, out=tmp_path / "r")
    kept = configuration.build(configuration.read(tmp_path / "r" / "config.toml"))
    assert kept.teachers == several.teachers
    assert kept.dispatch == several.dispatch
    assert str(lander) not in (tmp_path / "r" / "student.safetensors").read_bytes().decode("latin-1")
    single = distillrl.distill(config=replace(several, teachers=(), dispatch=None, teacher=str(lander)), out=tmp_path / "s")
    assert run.verdict["teacher"]["return"] == single.verdict["teacher"]["return"]  # two of the same are the same


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teachers": ("a.zip", "b.zip")}, "not both"),
        ({"teacher": None, "teachers": ("a.zip",)}, "several teachers are named"),
        ({"combine": "average"}, "several teachers are named"),
        ({"teacher": None, "teachers": ("a.zip", "b.zip"), "combine": "best", "dispatch": "obs[0]"}, "one of them says how"),
        ({"concurrency": 0}, "above 0"),
    ],
)
def test_options_that_do_not_go_together(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Misconfigured, match=says):
        replace(SMALL, **{"teacher": "a.zip", **changes})


def test_teachers_in_toml_are_a_list_of_texts() -> None:
    assert configuration.build({"teachers": ["a", "b"]}).teachers == ("a", "b")
    with pytest.raises(Misconfigured, match="a list of texts is right"):
        configuration.build({"teachers": "a,b"})
    with pytest.raises(Misconfigured, match="a list of texts is right"):
        configuration.build({"teachers": ["a", 1]})


THEIRS = '''
import json
from pathlib import Path

import torch
from torch import nn

from distillrl.actions import Head
from distillrl.records import ActionSpace, Group, Spec
from distillrl.senses import Sense
from distillrl.students.networks import Network


def sniff(path: Path) -> bool:
    return path.suffix == ".theirs"


def load(path, options, spec=None):
    rows = json.loads(path.read_text())
    groups, action = {"obs": Group((4,), "float32")}, ActionSpace("discrete", n=2)
    out = nn.Linear(4, 2)
    with torch.no_grad():
        out.weight.copy_(torch.tensor(rows))
        out.bias.zero_()
    return Network(Spec(groups, action), Sense(groups), nn.Sequential(), out, Head.of("categorical", action), info={"format": "theirs"}).requires_grad_(False)
'''


def test_a_new_format_is_a_file_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distillrl import teachers

    (tmp_path / "their_format.py").write_text(THEIRS)
    (tmp_path / "pole.theirs").write_text(json.dumps([[0, 0, -5, -1.5], [0, 0, 5, 1.5]]))
    monkeypatch.syspath_prepend(tmp_path)
    import their_format  # type: ignore[import-not-found]  # just written

    monkeypatch.setattr(teachers, "FORMATS", (*teachers.FORMATS, teachers.Format("theirs", "their format", their_format.sniff, "their_format")))
    run = distillrl.distill(config=replace(SMALL, teacher=str(tmp_path / "pole.theirs")), out=tmp_path / "r")
    assert run.verdict["teacher"]["return"]["mean"] == 40.0
    assert teachers.load(tmp_path / "pole.theirs", teachers.Options(format="theirs")).info["format"] == "theirs"


def test_a_vector_that_cant_be_replayed_is_reseeded_in_a_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As EnvPool's after 4096 ticks: the flagship's runs are that long. Resumed there, it gives the same student."""
    import gymnasium
    import torch

    from distillrl import states

    def leaning(obs: torch.Tensor) -> torch.Tensor:
        lean = 5 * (obs[:, 2] + 0.3 * obs[:, 3])
        return torch.stack([-lean, lean], -1)

    monkeypatch.setattr(states, "RESEED_TICKS", 64)

    def env() -> Any:
        return gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1", max_episode_steps=40)] * 4, autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP)

    long = replace(SMALL, env=None, rounds=8, checkpoint_seconds=1e-9, max_episode_steps=None)
    whole = distillrl.distill(leaning, env(), config=long, out=tmp_path / "whole")
    assert whole.verdict["rounds"] == 8

    def stop(metrics: Any) -> None:
        if metrics.get("round") == 4:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        distillrl.distill(leaning, env(), config=long, out=tmp_path / "cut", show=stop)
    distillrl.distill(leaning, env(), resume=tmp_path / "cut")
    assert (tmp_path / "cut" / "student.safetensors").read_bytes() == (tmp_path / "whole" / "student.safetensors").read_bytes()
