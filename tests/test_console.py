"""What a run shows in a terminal."""

from __future__ import annotations

import pytest

from distillrl.console import Display, curve, picture, spark

ROUND = {
    "round": 3, "round_steps": 512, "env_steps": 2_048, "labels": 2_048, "steps_per_second": 1024.0, "learn_seconds": 0.5, "seconds": 9.0, "agreement": 0.75,
    "term.forward_kl": 0.25, "term.value_mse": 0.5, "limits": {"env_steps": 4_096, "labels": None, "rounds": None, "seconds": None},
}  # fmt: skip
HISTORY = {"return.student": [-200.0, 50.0, 250.5], "agreement": [0.1 * i for i in range(9)], "term.forward_kl": [1 / (i + 1) for i in range(200)]}


def test_a_spark_rises_with_its_values():
    assert spark([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert spark([5.0], 8) == "▄"
    assert len(spark(list(range(1000)), 20)) == 20
    assert spark(list(range(1000)), 20)[-1] == "█"


def test_a_curve_has_the_ends_of_its_axis():
    lines = curve([-200.0, 50.0, 250.0], 40, 5)
    assert lines[0].startswith(" 250.0 ┤")
    assert lines[-1].startswith("-200.0 ┤▁")
    assert lines[0].rstrip().endswith("█")


@pytest.mark.parametrize("width", [80, 40, 24])
def test_the_live_view_fits_its_terminal(width):
    lines = picture({**ROUND, "return.teacher": 251.8}, HISTORY, "≤ 4 s", width)
    assert max(map(len, lines)) <= width
    told = "\n".join(lines)
    assert "return on the" in told
    assert "forward" in told
    assert "≤ 4 s left" in told
    assert "250.5" in told


def test_without_a_terminal_there_are_plain_lines_and_each_sentence_once(capsys):
    with Display() as show:
        for _ in range(2):
            show({**ROUND, "warning": "careful"})
        show({"folder": "runs/x"})
    told = capsys.readouterr().err
    assert told.count("warning: careful") == 1
    assert "forward_kl 0.2500  value_mse 0.5000  agreement 0.750  ≤ 4 s left" in told  # 2,048 steps more, and 512 took a second
    assert "\x1b" not in told


def test_the_nearest_limit_says_how_long_it_takes(capsys):
    with Display() as show:
        show({**ROUND, "limits": {"env_steps": 409_600, "labels": None, "rounds": 6, "seconds": 60}})
        show({**ROUND, "limits": {"env_steps": 409_600, "labels": None, "rounds": None, "seconds": 10}})
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("≤ 2 s left")
    assert second.endswith("≤ 1 s left")


def test_a_phase_by_reward_has_no_agreement(capsys):
    alone = {k: v for k, v in ROUND.items() if k != "agreement"}
    with Display() as show:
        show(alone)
    assert "agreement" not in capsys.readouterr().err
    assert picture(alone, {}, "?", 40)[0].startswith("round 3")
    assert "entropy" in "\n".join(picture(alone, {"term.entropy": [1.0, 0.5]}, "?", 40))
