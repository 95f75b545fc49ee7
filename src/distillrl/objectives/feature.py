"""Losses on what a policy notices: the features of a student's layer against those of a teacher's.

``layer`` names the teacher's, ``student_layer`` the student's, as ``distillrl info`` lists them; 'last' is the last of each.
Functions are ``(student, batch, *, options)``; modules are made from an example ``(student, batch)`` that gives the sizes,
called in the same way, and hold layers that are learnt along and thrown away. Those about pairs of states
return one number for the batch and leave out states of weight 0; the others one number per state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillrl.errors import Misconfigured, Missing
from distillrl.objectives.layers import ByTask, chosen, counted, leading, linear, raw, regressor
from distillrl.objectives.value import sized
from distillrl.records import TASKS, Batch, Prediction
from distillrl.tasks import TASK

STUDENT, TEACHER = "this student", "this teacher"


class Hint(nn.Module):
    """[...] ½ mean_f (r(φ_S)_f − φ_T,f)²: the student's layer must hold what the teacher's does, through a learnt map r.

    FitNets (Romero 2015, 1412.6550, eq. 3), the mean over features in place of the sum so that wide layers weigh the same.
    r is linear where the sizes differ (or ``always``), or has a layer of ``hidden`` ReLU units: Actor-Mimic's feature
    regression network (Parisotto 2016, 1511.06342, eq. 5). Of several tasks there is an r for each, as there: their teachers'
    features mean different things.
    """

    def __init__(
        self,
        student: Prediction,
        batch: Batch,
        *,
        generator: torch.Generator,
        layer: str = "last",
        student_layer: str = "last",
        hidden: int = 0,
        always: bool = False,
    ) -> None:
        super().__init__()
        self.layer, self.student_layer = layer, student_layer
        mine, theirs = chosen(student, student_layer, "hint", STUDENT, batch), chosen(batch.teacher, layer, "hint", TEACHER, batch)
        tasks = batch.extra[TASKS].shape[-1] if TASKS in batch.extra else 1
        made = [regressor(mine.shape[-1], theirs.shape[-1], hidden, always or tasks > 1, generator) for _ in range(tasks)]
        self.regressor = (ByTask(made) if tasks > 1 else made[0]).to(mine)

    def forward(self, student: Prediction, batch: Batch) -> Tensor:
        """[...]"""
        features = chosen(student, self.student_layer, "hint", STUDENT, batch)
        mine = self.regressor(features, batch.obs[TASK]) if isinstance(self.regressor, ByTask) else self.regressor(features)
        return 0.5 * (mine - chosen(batch.teacher, self.layer, "hint", TEACHER, batch)).square().mean(-1)


class Bilinear(nn.Module):
    """[...] Σ_a (φᵀW_aφ − Q_T(s, a))² / scale² + penalty · ‖W‖² (+ Σ_a (Q_θ(s, a) − Q_T(s, a))² / scale² where the student gives Q).

    φ is the student's layer, so that it comes to hold what the teacher's Q-values hang on, W [A, F, F] is learnt and thrown away,
    and Q_θ = f(φ) is the student's own head on it. ‖W‖² is the Frobenius norm: without it, W could explain Q from any φ. A
    teacher without Q gives its value, as Q of one action; then Q_θ is the student's value.
    """

    def __init__(
        self,
        student: Prediction,
        batch: Batch,
        *,
        generator: torch.Generator,
        student_layer: str = "last",
        penalty: float = 1e-3,
        scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.student_layer, self.penalty, self.scale = student_layer, penalty, scale
        features = chosen(student, student_layer, "bilinear", STUDENT, batch)
        width, actions = features.shape[-1], self._target(batch).shape[-1]
        w = torch.empty(actions, width, width).normal_(std=1 / width, generator=generator)
        self.w = nn.Parameter(w.to(features))

    def forward(self, student: Prediction, batch: Batch) -> Tensor:
        """[...]"""
        target = self._target(batch)
        features = chosen(student, self.student_layer, "bilinear", STUDENT, batch)
        form = torch.einsum("...i,aij,...j->...a", features, self.w, features)
        scale = sized(self.scale, target)
        loss = ((form - target) / scale).square().sum(-1) + self.penalty * self.w.square().sum()
        own = student.q if batch.teacher.q is not None else (None if student.value is None else student.value.unsqueeze(-1))
        return loss if own is None else loss + ((own - target) / scale).square().sum(-1)

    @staticmethod
    def _target(batch: Batch) -> Tensor:
        teacher = batch.teacher
        if teacher.q is None and teacher.value is None:
            raise Missing("bilinear needs the teacher's `q` or `value`, but this teacher gives neither; hint needs only its features")
        return teacher.q if teacher.q is not None else teacher.value.unsqueeze(-1)  # type: ignore[union-attr]  # one of both is there


def attention_transfer(student: Prediction, batch: Batch, *, layer: str = "last", student_layer: str = "last", power: int = 2) -> Tensor:
    """[...] ‖Q_S/‖Q_S‖ − Q_T/‖Q_T‖‖², Q = Σ_c |φ_c|^p over the channels: both look at the same places (Zagoruyko 2017, 1612.03928, eq. 2).

    Maps are [..., C, H, W]; channels may differ, and the finer map is averaged to the coarser one's size. Of vectors [..., F]
    each feature is a place, so their sizes must agree.
    """
    mine, theirs = raw(student, student_layer, "attention_transfer", STUDENT), raw(batch.teacher, layer, "attention_transfer", TEACHER)
    lead = leading(batch)
    if mine.dim() == lead + 3 and theirs.dim() == lead + 3:
        size = (min(mine.shape[-2], theirs.shape[-2]), min(mine.shape[-1], theirs.shape[-1]))
        a, b = (_attention(x.flatten(0, lead - 1), power, size).reshape(*x.shape[:lead], -1) for x in (mine, theirs))
    elif mine.shape[lead:] == theirs.shape[lead:] and mine.dim() == lead + 1:
        a, b = mine.abs() ** power, theirs.abs() ** power
    else:
        raise Misconfigured(
            f"objective attention_transfer: the student's layer is {list(mine.shape[lead:])}, the teacher's {list(theirs.shape[lead:])}; "
            "two maps [C, H, W] or two vectors of one size are right (hint, cka and rkd_distance take any)"
        )
    return (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(-1)


def rkd_distance(student: Prediction, batch: Batch, *, layer: str = "last", student_layer: str = "last", states: int = 128) -> Tensor:
    """Scalar, about the batch: mean over pairs of Huber(d_S − d_T), d the distance of two states' features over its mean (Park 2019, 1904.05068, eq. 7–9).

    States that the teacher finds alike must be alike to the student; sizes may differ. Over the first ``states`` of weight > 0.
    """
    a, b = _two(student, batch, layer, student_layer, "rkd_distance", states)
    pairs = ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    mine, theirs = _distances(a)[pairs], _distances(b)[pairs]
    return F.huber_loss(mine / _positive_mean(mine), theirs / _positive_mean(theirs)) if len(mine) else a.sum() * 0.0


def rkd_angle(student: Prediction, batch: Batch, *, layer: str = "last", student_layer: str = "last", states: int = 48) -> Tensor:
    """Scalar, about the batch: mean over triples of Huber(cos_S − cos_T), cos of the angle at the middle state (Park 2019, 1904.05068, eq. 10–12).

    Over the first ``states`` of weight > 0: memory and time grow with their cube.
    """
    a, b = _two(student, batch, layer, student_layer, "rkd_angle", states)
    n = len(a)
    distinct = ~torch.eye(n, dtype=torch.bool, device=a.device)
    triples = distinct.unsqueeze(2) & distinct.unsqueeze(1) & distinct.unsqueeze(0)
    return F.huber_loss(_cosines(a)[triples], _cosines(b)[triples]) if n > 2 else a.sum() * 0.0


def correlation(
    student: Prediction, batch: Batch, *, layer: str = "last", student_layer: str = "last", gamma: float = 0.4, states: int = 128
) -> Tensor:
    """Scalar, about the batch: mean over pairs of (k_S − k_T)², k = exp(−γ‖φ_i − φ_j‖²) of features of length 1 (Peng 2019, 1904.01802, eq. 8 with its Gaussian kernel).

    Sizes may differ. Over the first ``states`` of weight > 0.
    """
    a, b = _two(student, batch, layer, student_layer, "correlation", states)
    mine, theirs = (torch.exp(-gamma * _squared_distances(F.normalize(x, dim=-1))) for x in (a, b))
    return (mine - theirs).square().mean() if len(a) else a.sum() * 0.0


def cka(student: Prediction, batch: Batch, *, layer: str = "last", student_layer: str = "last") -> Tensor:
    """Scalar, about the batch: 1 − linear CKA = 1 − ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), X and Y centred (Kornblith 2019, 1905.00414, section 3).

    0 … 1; 0 where the student's features are a rotation and a scaling of the teacher's. Sizes may differ.
    """
    x, y = (f - f.mean(0) for f in _two(student, batch, layer, student_layer, "cka", None))
    cross, own, other = (x.T @ y).square().sum(), (x.T @ x).square().sum(), (y.T @ y).square().sum()
    return 1 - cross / (own * other).sqrt().clamp_min(1e-12)


class Contrastive(nn.Module):
    """[...] InfoNCE of (student's, teacher's) features of one state against those of other states in a memory bank, both ways round.

    CRD (Tian 2020, 1910.10699, section 3) with its two linear maps to ``width``, features of length 1 and τ; the bank is a queue of
    the last ``bank`` states' features rather than a table of a fixed data set, as in MoCo, because the states here are new every
    round. Mean of −log e^{sᵀt/τ} / (e^{sᵀt/τ} + Σ_bank e^{sᵀt'/τ}) and the same with the roles changed. The bank starts with random
    directions and takes in each batch that is learnt from (weights above 0, gradients on).
    """

    bank_teacher: Tensor
    bank_student: Tensor
    at: Tensor

    def __init__(
        self,
        student: Prediction,
        batch: Batch,
        *,
        generator: torch.Generator,
        layer: str = "last",
        student_layer: str = "last",
        width: int = 64,
        bank: int = 1024,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.layer, self.student_layer, self.temperature = layer, student_layer, temperature
        mine, theirs = chosen(student, student_layer, "crd", STUDENT, batch), chosen(batch.teacher, layer, "crd", TEACHER, batch)
        self.of_student = linear(mine.shape[-1], width, generator).to(mine)
        self.of_teacher = linear(theirs.shape[-1], width, generator).to(mine)
        for name in ("bank_student", "bank_teacher"):
            self.register_buffer(name, F.normalize(torch.empty(bank, width).normal_(generator=generator), dim=-1).to(mine))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Prediction, batch: Batch) -> Tensor:
        """[...]"""
        s = F.normalize(self.of_student(chosen(student, self.student_layer, "crd", STUDENT, batch)), dim=-1)
        t = F.normalize(self.of_teacher(chosen(batch.teacher, self.layer, "crd", TEACHER, batch)), dim=-1)
        same = (s * t).sum(-1, keepdim=True)
        from_student = torch.cat([same, s @ self.bank_teacher.clone().T], -1) / self.temperature
        from_teacher = torch.cat([same, t @ self.bank_student.clone().T], -1) / self.temperature
        if self.training and torch.is_grad_enabled():
            self._remember(*counted(batch, s.detach(), t.detach(), most=len(self.bank_student)))
        return -0.5 * (from_student.log_softmax(-1)[..., 0] + from_teacher.log_softmax(-1)[..., 0])

    def _remember(self, s: Tensor, t: Tensor) -> None:
        size = len(self.bank_student)
        where = (self.at + torch.arange(len(s), device=s.device)) % size
        self.bank_student[where], self.bank_teacher[where] = s, t
        self.at.copy_((self.at + len(s)) % size)


class Adversarial(nn.Module):
    """[...] softplus(−D(r(φ_S))): the student's features must pass for the teacher's before a discriminator D (Goodfellow 2014; Chung 2020, 2002.01775).

    Unlike a hint it matches the distribution of features, not each state's. r is linear where the sizes differ and is learnt with the
    student. D has ``hidden`` ReLU units; its ``own_loss`` is for an optimiser of its own over ``own_parameters()``: mean of softplus(D(r(φ_S))) +
    softplus(−D(φ_T)) + ½ penalty ‖∇D(φ_T)‖², the gradient penalty R1 (Mescheder 2018, 1801.04406, eq. 9). No gradient of the
    student's loss goes to D, and none of D's to the student.
    """

    def __init__(
        self,
        student: Prediction,
        batch: Batch,
        *,
        generator: torch.Generator,
        layer: str = "last",
        student_layer: str = "last",
        hidden: int = 64,
        penalty: float = 1.0,
    ) -> None:
        super().__init__()
        self.layer, self.student_layer, self.penalty = layer, student_layer, penalty
        mine, theirs = (
            chosen(student, student_layer, "adversarial", STUDENT, batch),
            chosen(batch.teacher, layer, "adversarial", TEACHER, batch),
        )
        self.regressor = regressor(mine.shape[-1], theirs.shape[-1], 0, False, generator).to(mine)
        self.discriminator = regressor(theirs.shape[-1], 1, hidden, True, generator).to(mine)

    def own_parameters(self) -> list[nn.Parameter]:
        """What ``own_loss`` is to train: the discriminator's."""
        return list(self.discriminator.parameters())

    def forward(self, student: Prediction, batch: Batch) -> Tensor:
        """[...]"""
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        mine = self.regressor(chosen(student, self.student_layer, "adversarial", STUDENT, batch))
        verdict: Tensor = torch.func.functional_call(self.discriminator, fixed, (mine,))
        return F.softplus(-verdict.squeeze(-1))

    def own_loss(self, student: Prediction, batch: Batch) -> Tensor:
        """Scalar: the discriminator's, over states of weight above 0."""
        with torch.no_grad():
            mine = self.regressor(chosen(student, self.student_layer, "adversarial", STUDENT, batch))
        mine, theirs = counted(batch, mine, chosen(batch.teacher, self.layer, "adversarial", TEACHER, batch))
        with torch.enable_grad():
            theirs = theirs.detach().requires_grad_()
            real = self.discriminator(theirs).squeeze(-1)
            slope = torch.autograd.grad(real.sum(), theirs, create_graph=True)[0]
            each = F.softplus(self.discriminator(mine).squeeze(-1)) + F.softplus(-real) + 0.5 * self.penalty * slope.square().sum(-1)
            return each.sum() / max(1, len(each))


def _attention(maps: Tensor, power: int, size: tuple[int, int]) -> Tensor:
    """[n, C, H, W] → [n, h·w]"""
    attention = (maps.abs() ** power).sum(1, keepdim=True)
    return F.adaptive_avg_pool2d(attention, size).flatten(1)


def _two(student: Prediction, batch: Batch, layer: str, student_layer: str, who: str, most: int | None) -> tuple[Tensor, Tensor]:
    """[n, F] of the student and [n, F'] of the teacher."""
    mine, theirs = chosen(student, student_layer, who, STUDENT, batch), chosen(batch.teacher, layer, who, TEACHER, batch)
    a, b = counted(batch, mine, theirs, most=most)
    return a, b


def _squared_distances(x: Tensor) -> Tensor:
    return (x.unsqueeze(0) - x.unsqueeze(1)).square().sum(-1)


def _distances(x: Tensor) -> Tensor:
    """[n, n]; a square root that has a gradient of 0, not NaN, at distance 0."""
    squared = _squared_distances(x)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, torch.ones_like(squared)).sqrt(), torch.zeros_like(squared))


def _positive_mean(x: Tensor) -> Tensor:
    return x.sum() / (x > 0).sum().clamp_min(1) + 1e-12


def _cosines(x: Tensor) -> Tensor:
    """[n, n, n]: at [j, i, k] the cosine of the angle at j between the ways to i and to k."""
    ways = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), dim=-1)
    return torch.einsum("jif,jkf->jik", ways, ways)
