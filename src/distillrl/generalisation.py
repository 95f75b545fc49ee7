"""Seeds, levels and parameters never seen in distillation, against those that were; teacher and student side by side."""

from __future__ import annotations

from typing import Any

from distillrl import evaluation, stats
from distillrl.envs import EnvOptions, Seeds
from distillrl.policies import Policy

WORSE = 0.02


def measure(
    student: Policy,
    teacher: Policy,
    seen: EnvOptions,
    unseen: EnvOptions | None = None,
    *,
    episodes: int = 100,
    seed: int = 0,
    random_mean: float | None = None,
) -> dict[str, Any]:
    """What the student loses against its teacher when it leaves what it was distilled on; plain data.

    It plays the training stream's first episodes in ``seen`` (the environment of the run) and the verdict's in
    ``unseen`` (by default the same environment). The streams are disjoint by construction. ``gap`` is (student −
    teacher) where seen minus the same where unseen, in shares of the teacher's return above random play: what harder
    levels cost both is not counted. ``overfitted`` where its 95 % interval lies above 0 and the gap above 2 %.
    """
    places = {"seen": (seen, Seeds(seed, "train")), "unseen": (unseen or seen, Seeds(seed, "verdict"))}
    returns = {
        place: {who: evaluation.play(p, options, episodes, seeds).returns for who, p in (("student", student), ("teacher", teacher))}
        for place, (options, seeds) in places.items()
    }
    size = abs(float(returns["seen"]["teacher"].mean()) - (random_mean or 0.0)) or 1.0
    behind = {place: (r["student"] - r["teacher"]) / size for place, r in returns.items()}
    gap = stats.difference_interval(behind["seen"], behind["unseen"], seed)
    overfitted = gap.low > 0 and gap.value > WORSE
    report: dict[str, Any] = {
        "episodes": episodes,
        "seed": seed,
        "same_environment": unseen is None,
        "gap": _interval(gap),
        "overfitted": overfitted,
    }
    for place, players in returns.items():
        report[place] = {who: _interval(stats.mean_interval(r, seed)) for who, r in players.items()}
    report["sentence"] = (
        f"The student is worse outside of what it was distilled on: it falls behind its teacher by {gap.value:.1%} of that one's return above random play "
        f"({gap.low:.1%} … {gap.high:.1%}) more than on the episodes it was distilled on."
        if overfitted
        else None
    )
    return report


def _interval(interval: stats.Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
