"""How much recorded play counts: by the episode's return or success, or by each step's advantage.

``top(0.1)``: the episodes with the highest returns, a tenth of all steps (percentage BC; Chen 2021, 2106.01345, section 5).
``success``: the episodes that are recorded as successes; ``success(200)``: those with a return of at least 200.
``awr(1)``: exp(A / β), A in deviations, at most 20 (Peng 2019, 1910.00177, eq. 9 and section 5).
``crr``: 1 where A > 0, else 0, and ``crr_exp(1)``: exp(A / β), A in units of reward, at most 20 (Wang 2020, 2006.15134, eq. 3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from distillrl.actions import Categorical
from distillrl.advantages import gae
from distillrl.errors import Misconfigured, nearest
from distillrl.lanes import Lanes
from distillrl.objectives.layers import linear
from distillrl.policies import flatten
from distillrl.recordings import Recording
from distillrl.records import Group, Prediction, Rollout
from distillrl.senses import Sense, one_hot_where_needed

KINDS: dict[str, float | None] = {"top": 0.1, "success": None, "awr": 1.0, "crr": None, "crr_exp": 1.0}
"""Name → the number that stands for itself where none is given."""
BY_EPISODE = frozenset({"top", "success"})
MOST = 20.0
"""No state counts more than this, before the mean is taken out (both papers' code)."""
FOLDS, HIDDEN, UPDATES, BATCH, WIDEST = 5, 64, 1000, 256, 1024
"""Of the critic: it is fitted so many times, each to the other folds' episodes; a wider observation is thinned out evenly."""


@dataclass(frozen=True)
class Weighing:
    """A parsed word: its kind, and its number."""

    kind: str
    number: float | None

    def __str__(self) -> str:
        return self.kind if self.number is None else f"{self.kind}({self.number:g})"


def parse(text: str) -> Weighing | None:
    """``awr(0.5)`` → Weighing("awr", 0.5); None for none. Raises Misconfigured."""
    if text.strip().lower() in {"", "none"}:
        return None
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*([^()]*?)\s*\))?\s*", text)
    kind = match.group(1) if match else text.partition("(")[0].strip()
    if match is None or kind not in KINDS:
        raise Misconfigured(f"weigh = {text!r}{nearest(kind, KINDS)}: awr(1), crr, crr_exp(1), top(0.1), success and success(200) are right")
    number = KINDS[kind]
    if match.group(2):
        try:
            number = float(match.group(2))
        except ValueError:
            raise Misconfigured(f"weigh = {text!r}: {match.group(2)!r} is no number") from None
    wrong = number is not None and (not np.isfinite(number) or (kind != "success" and number <= 0) or (kind == "top" and number > 1))
    if wrong:
        raise Misconfigured(f"weigh = {text!r}: {'a share above 0, up to 1,' if kind == 'top' else 'a number above 0'} is right")
    if kind == "crr" and number is not None:
        raise Misconfigured(f"weigh = {text!r}: crr takes no number; crr_exp(1) does")
    return Weighing(kind, number)


# ── by the episode ────────────────────────────────────────────────────────────────────────────────────────────────


def kept(recording: Recording, weighing: Weighing | None) -> np.ndarray:
    """[E] bool: the episodes that are learnt from. Raises Misconfigured where the recording lacks what is asked, or none is left."""
    everything = np.ones(recording.episodes, dtype=bool)
    if weighing is None:
        return everything
    returns = recording.returns
    if returns is None and not (weighing.kind == "success" and weighing.number is None):
        raise Misconfigured(f"weigh = {weighing} goes by rewards, and {recording.source} has none")
    if weighing.kind not in BY_EPISODE:
        return everything
    if weighing.kind == "top":
        assert returns is not None
        assert weighing.number is not None
        order = np.argsort(-returns, kind="stable")
        before = np.concatenate([[0], np.cumsum(recording.lengths[order])[:-1]])
        chosen = np.zeros(recording.episodes, dtype=bool)
        chosen[order[before < weighing.number * recording.steps]] = True
        return chosen
    if weighing.number is not None:
        assert returns is not None
        best = returns >= weighing.number
    elif recording.success is not None:
        best = recording.success
    else:
        raise Misconfigured(f"weigh = success, and {recording.source} records no success: success(200) takes the episodes with a return of at least 200, top(0.1) the best")
    if not best.any():
        said = f"the best return is {returns.max():g}" if returns is not None else f"none of {recording.episodes} episodes is one"
        raise Misconfigured(f"weigh = {weighing} leaves nothing of {recording.source}: {said}")
    return best


# ── by the step ───────────────────────────────────────────────────────────────────────────────────────────────────


def of_advantages(advantage: np.ndarray, weighing: Weighing) -> np.ndarray:
    """[S] weights of advantages [S], as a kind of KINDS says; not yet with a mean of 1."""
    if weighing.kind == "crr":
        return (advantage > 0).astype(np.float64)
    assert weighing.number is not None
    scale = weighing.number * (max(float(advantage.std()), 1e-8) if weighing.kind == "awr" else 1.0)
    return np.exp(np.minimum(advantage / scale, np.log(MOST)))


def weigh(parts: list[tuple[Rollout, Lanes]], weighing: Weighing, gamma: float, lam: float, observations: dict[str, Group], generator: torch.Generator) -> tuple[list[Rollout], str]:
    """The rollouts with weights, 1 on average over all of them, and a sentence on the value that they were measured by.

    It is the teacher's where the label has one and it explains the returns at all, else a critic's.
    """
    given = [_teachers(r, lanes, weighing) for r, lanes in parts]
    returns = [_to_go(r, lanes, v, gamma) for (r, lanes), v in zip(parts, given, strict=True) if v is not None]
    said = ""
    explained = _explained([v for v in given if v is not None], returns, parts) if len(returns) == len(parts) else None
    if explained is None or explained < 0:
        if explained is not None:
            said = "the teacher's value explains nothing of the recorded returns (another discount or scale of rewards?): "
        given, explained = _critic(parts, observations, gamma, generator)  # type: ignore[assignment]  # every part has one then
        said += "advantages are measured by a critic fitted to the recorded returns"
    else:
        said = "advantages are measured by the teacher's value"
    advantages = [lanes.flat(_advantage(r, v, weighing, gamma, lam)).double().numpy() for (r, lanes), v in zip(parts, given, strict=True) if v is not None]
    weights = of_advantages(np.concatenate(advantages), weighing)
    if not weights.any():
        raise Misconfigured(f"weigh = {weighing} leaves nothing: no recorded action is better than its state is worth")
    share = float(weights.sum() ** 2 / (weights**2).sum() / len(weights))
    weights /= weights.mean()
    made, first = [], 0
    for r, lanes in parts:
        count = len(lanes.steps)
        made.append(replace(r, weight=lanes.grid(torch.from_numpy(weights[first : first + count]).float())))
        first += count
    return made, f"{said}, which explains {explained:.0%} of them; the weights leave {share:.0%} of the states' worth"


def _teachers(rollout: Rollout, lanes: Lanes, weighing: Weighing) -> Tensor | None:
    """[T + 1, N] the teacher's value, behind an episode too; None where it gives none."""
    label = rollout.teacher
    if label is None:
        return None
    value = label.value
    if value is None and label.q is not None and isinstance(label.action, Categorical):
        value = (label.action.log_probs.exp() * label.q).sum(-1)
    if value is None:
        return None
    behind = value.flatten()[lanes.ends - lanes.count]  # what an episode ended in was not asked about: the state before it stands for it
    return lanes.grid(lanes.flat(value), behind, extra_row=True).float()


def _advantage(rollout: Rollout, value: Tensor, weighing: Weighing, gamma: float, lam: float) -> Tensor:
    label: Prediction | None = rollout.teacher
    if weighing.kind != "awr" and label is not None and label.q is not None:  # CRR's own: Q(s, a) − V(s)
        return label.q.gather(-1, rollout.action.unsqueeze(-1)).squeeze(-1) - value[:-1]
    return gae(rollout.reward, value, rollout.terminated, rollout.truncated, gamma, lam)


def _to_go(rollout: Rollout, lanes: Lanes, value: Tensor, gamma: float) -> np.ndarray:
    """[S] discounted returns to the episode's end, with the value of what a cut one ended in."""
    whole = gae(rollout.reward, value, rollout.terminated, rollout.truncated, gamma, 1.0) + value[:-1]
    return lanes.flat(whole).double().numpy()


def _explained(values: list[Tensor], returns: list[np.ndarray], parts: list[tuple[Rollout, Lanes]]) -> float:
    """1 − Var(R − V) / Var(R), over all parts together."""
    value = np.concatenate([lanes.flat(v[:-1]).double().numpy() for v, (_, lanes) in zip(values, parts, strict=True)])
    target = np.concatenate(returns)
    return float(1 - np.square(target - value).mean() / max(float(target.var()), 1e-12))


def _critic(parts: list[tuple[Rollout, Lanes]], observations: dict[str, Group], gamma: float, generator: torch.Generator) -> tuple[list[Tensor], float]:
    """[T + 1, N] values of each part's states, each by a network that saw no step of its episode, and the share of returns explained.

    Two hidden layers of tanh, Adam, squared error; what a cut episode ended in is worth what the network itself says of it, asked anew four times.
    """
    seen = {k: torch.cat([r.obs[k].flatten(0, 1) for r, _ in parts]) for k in parts[0][0].obs}
    x = _inputs(seen, {k: observations[k] for k in seen})
    offsets = np.cumsum([0, *(r.valid.numel() + lanes.count for r, lanes in parts)])
    episodes = sum(len(lanes.ends) for _, lanes in parts)
    fold_of = torch.randperm(episodes, generator=generator) % min(FOLDS, episodes)
    folds, first = [], 0
    for _, lanes in parts:  # each step's fold, and that of the row behind its episode; −1 elsewhere
        mine = fold_of[first : first + len(lanes.ends)]
        folds.append((lanes.grid(mine.repeat_interleave(lanes.lengths) + 1, mine + 1, extra_row=True) - 1).flatten())
        first += len(lanes.ends)
    fold, value = torch.cat(folds), torch.zeros(len(x))
    steps = torch.cat([lanes.steps + int(o) for (_, lanes), o in zip(parts, offsets, strict=False)])
    for k in range(int(fold.max()) + 1):
        others = steps[fold[steps] != k] if episodes > 1 else steps
        value[fold == k] = _fitted(x, others, parts, offsets, gamma, generator)[fold == k]
    values = [value[int(a) : int(b)].unflatten(0, (-1, lanes.count)) for a, b, (_, lanes) in zip(offsets, offsets[1:], parts, strict=False)]
    returns = [_to_go(r, lanes, v, gamma) for (r, lanes), v in zip(parts, values, strict=True)]
    return values, _explained(values, returns, parts)


def _fitted(x: Tensor, rows: Tensor, parts: list[tuple[Rollout, Lanes]], offsets: np.ndarray, gamma: float, generator: torch.Generator) -> Tensor:
    """[len(x)] the values by one network, fitted to the returns of these rows."""
    with torch.inference_mode(False), torch.enable_grad():
        x = (x - x[rows].mean(0)) / x[rows].std(0, correction=0).clamp_min(1e-3)
        x = x.clamp(-10, 10)
        net = nn.Sequential(linear(x.shape[1], HIDDEN, generator), nn.Tanh(), linear(HIDDEN, HIDDEN, generator), nn.Tanh(), linear(HIDDEN, 1, generator))
        optimiser = torch.optim.Adam(net.parameters(), lr=3e-3, fused=True)
        value = torch.zeros(len(x))
        for stage in range(4):
            target = torch.zeros(len(x))
            for (rollout, lanes), offset in zip(parts, offsets, strict=False):
                mine = value[int(offset) : int(offset) + (lanes.rows + 1) * lanes.count].unflatten(0, (-1, lanes.count))
                target[lanes.steps + int(offset)] = torch.from_numpy(_to_go(rollout, lanes, mine, gamma)).float()
            if stage == 0:
                middle, spread = target[rows].mean(), target[rows].std(correction=0).clamp_min(1e-6)
            for _ in range(UPDATES // 4):
                batch = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
                loss = (net(x[batch]).squeeze(-1) - (target[batch] - middle) / spread).square().mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                value = torch.cat([net(part).squeeze(-1) for part in x.split(8192)]) * spread + middle
        return value


def _inputs(obs: dict[str, Tensor], observations: dict[str, Group]) -> Tensor:
    """[rows, F] float, categories as one-hot."""
    sense = Sense(observations, one_hot_where_needed(observations))
    seen, _ = sense(obs, {}, None)
    x = flatten(seen, sense.groups)
    thin = -(-x.shape[1] // WIDEST)
    return x[:, ::thin].clone()
