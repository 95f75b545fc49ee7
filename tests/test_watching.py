"""Films of teacher and student, and the log of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
import torch
from evidence_cases import SENSORS, Levels, Sides, sides

from distillrl.actions import Categorical, Deterministic, Gaussian, MultiCategorical
from distillrl.envs import EnvOptions
from distillrl.errors import Misconfigured, Missing
from distillrl.logging import Log
from distillrl.records import Prediction
from distillrl.watching import bars, watch

pytest.importorskip("PIL", reason="Pillow is not installed: pip install 'distillrl[report]'")
SIDES = EnvOptions(Sides)
TEACHER = Path(__file__).resolve().parents[1] / "examples" / "ppo_lunar.zip"


def test_both_play_the_same_episode_side_by_side(tmp_path):
    from PIL import Image

    always = sides(1, 0.0)
    found = watch({"teacher": sides(), "student": always}, SIDES, tmp_path / "deep" / "film.gif", fps=10)
    assert found.steps == 20
    assert found.returns["teacher"] == 20
    assert found.returns["student"] < 20
    with Image.open(found.path) as film:
        assert film.width == 2 * 360
        assert film.n_frames > 10


def test_an_mp4_where_ffmpeg_is(tmp_path):
    pytest.importorskip("imageio", reason="imageio is not installed: pip install 'distillrl[video]'")
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed: pip install 'distillrl[video]'")
    found = watch({"teacher": sides()}, SIDES, tmp_path / "film.mp4")
    assert found.path.read_bytes()[4:8] == b"ftyp"


def test_what_cannot_be_filmed_is_said(tmp_path):
    with pytest.raises(Misconfigured, match=r"ends in \.gif or \.mp4"):
        watch({"teacher": sides()}, SIDES, tmp_path / "film.avi")
    with pytest.raises(Misconfigured, match="--backend gymnasium"):
        watch({"teacher": sides()}, EnvOptions("LunarLander-v3", backend="envpool"), tmp_path / "film.gif")
    with pytest.raises(Missing, match="can't be filmed: Levels gives no pictures"):
        watch({"teacher": sides()}, EnvOptions(Levels), tmp_path / "film.gif")
    with pytest.raises(Misconfigured, match="the teacher does not fit CartPole-v1"):
        watch({"teacher": sides()}, EnvOptions("CartPole-v1"), tmp_path / "film.gif")


def test_bars_say_what_is_played():
    choice = bars(Prediction(Categorical(torch.tensor([[0.1, 0.6, 0.3]]).log())))
    assert [(label, round(share, 3), best) for label, share, best in choice] == [("0", 0.1, False), ("1", 0.6, True), ("2", 0.3, False)]
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0])
    numbers = bars(Prediction(Gaussian(torch.tensor([[0.0, 1.5]]), torch.zeros(1, 2), low, high)))
    assert numbers == [("0: 0.00", 0.5, True), ("1: 1.50", 0.75, True)]
    assert bars(Prediction(Deterministic(torch.tensor([3])))) == [("action 3", 1.0, True)]
    assert [b[0] for b in bars(Prediction(MultiCategorical(torch.tensor([[0.0, 1.0, 2.0, 0.0]]), (2, 2))))] == ["0: 1", "1: 0"]
    assert len(bars(Prediction(Categorical(torch.zeros(1, SENSORS))))) == 8


def test_a_log_holds_scalars_histograms_and_what_was_chosen(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'distillrl[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    earned = {"return": {"mean": 2.0, "returns": [1.0, 3.0]}}
    with Log("tensorboard") as log:
        log({"round": 0, "env_steps": 10, "agreement": 0.5})  # before a folder: nowhere to write
        log({"folder": str(tmp_path)})
        for i in range(3):
            log({"round": i, "env_steps": 100 * (i + 1), "agreement": i / 2, "term.forward_kl": 0.1, "warning": "careful", "budget": None})
        log({"verdict": {"env": "Sides", "teacher": earned, "student": earned, "random": None, "retention": {"value": 0.9}}})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    tags = found.Tags()
    assert {"run/agreement", "term/forward_kl", "verdict/retention"} <= set(tags["scalars"])
    assert [(e.step, e.value) for e in found.Scalars("run/agreement")] == [(100, 0.0), (200, 0.5), (300, 1.0)]
    assert {"returns/teacher", "returns/student"} <= set(tags["histograms"])
    assert "note/text_summary" in tags["tensors"]  # no film: the folder holds no run
    json.dumps(tags)


def test_the_command_line_logs_a_run_and_goes_on_with_its_log(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'distillrl[tensorboard]'")
    from click.testing import CliRunner
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from distillrl.cli import main

    quick = tmp_path / "quick.toml"
    quick.write_text("verdict_episodes = 2\nselect_episodes = 2\nslots = 4\n")
    words = ["distill", str(TEACHER), "--env", "LunarLander-v3", "--max-episode-steps", "40", "--rounds", "2", "--until", "none", "--config", str(quick), "--out", str(tmp_path / "r"), "--log", "tensorboard"]
    result = CliRunner().invoke(main, words, catch_exceptions=False, standalone_mode=False)
    assert "student:" in result.output
    found = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    found.Reload()
    tags = found.Tags()
    assert {"run/agreement", "run/env_steps", "term/forward_kl", "verdict/return of the student"} <= set(tags["scalars"])
    assert {"returns/student", "student/out.weight"} <= set(tags["histograms"]), tags["histograms"]
    assert tags["images"] == ["film"], tags
    assert found.Images("film")[0].encoded_image_string[:3] == b"GIF"
    refused = CliRunner().invoke(main, [*words[:-1], "wandb"])
    assert "tensorboard" in str(refused.exception)


def test_an_unknown_log_names_the_nearest():
    with pytest.raises(Misconfigured, match="did you mean 'tensorboard'"):
        Log("tensorbord")


def test_a_vector_cannot_be_filmed(tmp_path):
    with pytest.raises(Misconfigured, match="only gymnasium"):
        watch({"teacher": sides()}, EnvOptions(gymnasium.vector.SyncVectorEnv([Sides])), tmp_path / "film.gif")


def test_a_resumed_run_goes_on_with_its_log(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'distillrl[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import distillrl
    from distillrl.config import Config

    config = Config(student="mlp:4", until="none", rounds=5, slots=4, backend="gymnasium:1", verdict_episodes=4, select_episodes=4, checkpoint_seconds=0.0)
    folder = tmp_path / "r"

    class Broken(Exception):
        """Stands for a killed process."""

    log = Log(film=False)

    def show(metrics):
        log(metrics)
        if metrics.get("round") == 2:  # its line is logged, and no checkpoint has it yet
            raise Broken

    with pytest.raises(Broken):
        distillrl.distill(lambda obs: obs.mean(-1, keepdim=True) * torch.tensor([-4.0, 4.0]), Sides, config=config, out=folder, show=show)
    log.close()
    with Log(film=False) as log:
        distillrl.distill(lambda obs: obs.mean(-1, keepdim=True) * torch.tensor([-4.0, 4.0]), Sides, resume=folder, show=log)
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [e.step for e in found.Scalars("run/agreement")] == [line["env_steps"] for line in lines], "each round once"
    assert [e.value for e in found.Scalars("term/forward_kl")] == pytest.approx([line["term.forward_kl"] for line in lines])
    tags = found.Tags()
    assert {"returns/student", "student/out.weight"} <= set(tags["histograms"])
    assert "_hparams_/experiment" in found.summary_metadata
    assert found.Scalars("verdict/return of the student")[-1].value == pytest.approx(json.loads((folder / "verdict.json").read_text())["student"]["return"]["mean"])


def test_tensorboard_is_loaded_with_the_log_and_not_before():
    code = "import sys, distillrl.logging; assert not {'tensorboard', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
