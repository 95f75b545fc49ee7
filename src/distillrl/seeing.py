"""The words of ``--see``: ``group=policy, drop=2,3,5, stack=4`` → a Sense.

Steps stand in the order in which they work, separated by commas; a part that is only a place (``5``) or a range of
places (``4-7``) goes on with the list before it. ``pick=`` and ``drop=`` take places counted from 0, with ``NAME:``
before the first one where there are several vectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from distillrl.errors import Misconfigured, nearest
from distillrl.filters import Choose, Clip, Delay, Noise, Quantise
from distillrl.images import Crop, Grey, Jitter, Resize, images, is_image
from distillrl.records import Group
from distillrl.senses import Pick, Sense, Stack, one_hot_where_needed
from distillrl.sounds import SHORTEST, Spectrogram, is_waveform
from distillrl.tasks import TASK

_PLACES = re.compile(r"\s*(\d+)(?:-(\d+))?\s*")
_LONGEST = 1 << 20
EXAMPLE = (
    "'drop=2,3,5, stack=4', 'pick=0,1,4-7', 'group=policy', 'delay=2', 'clip=5', 'noise=0.1', 'quantise=0.01', 'normalise', "
    "of sound 'spectrogram=256x16', of words 'group=image+mission, words=red+green+ball', "
    "or of images 'render, crop=0-299, grey, resize=84, stack=4, jitter=0.2'"
)
RENDER = "render"
"""The group that any environment gives that can draw itself: its picture of this moment, where someone reads it."""
_BARE = {"grey", RENDER}
_EITHER = {"normalise"}
"""Words that stand alone or with a value."""


def split(text: str) -> list[tuple[str, str]]:
    """``drop=2,3, stack=4`` → [("drop", "2,3"), ("stack", "4")]; raises Misconfigured for what is no step."""
    parts: list[list[str]] = []
    for part in text.split(","):
        if _PLACES.fullmatch(part) and parts and parts[-1][0] in {"pick", "drop"}:
            parts[-1][1] += f",{part.strip()}"
            continue
        word, equals, value = part.partition("=")
        word = word.strip()
        if word not in _WORDS:
            raise Misconfigured(f"--see {text!r}: unknown step {word!r}{nearest(word, _WORDS)}; write it as {EXAMPLE}")
        if (word not in _EITHER and bool(equals) != (word not in _BARE)) or bool(value.strip()) != bool(equals):
            raise Misconfigured(f"--see {text!r}: {part.strip()!r} was given; {_WORDS[word][1]} is right")
        parts.append([word, value.strip()])
    return [(word, value) for word, value in parts]


def parse(text: str, observations: Mapping[str, Group]) -> Sense:
    """The Sense of a text for these observation groups; category numbers become one-hot vectors first where any are left.

    ``normalise`` makes no step here: a student's normaliser stands at the end of the chain once the first rollout was measured;
    see ``running``. Raises Misconfigured, with what would be right.
    """
    steps: list[Any] = []
    groups = dict(observations)
    expanded = False
    several = TASK in observations and bool(observations[TASK].categories)  # which task is played is not to be stacked, blurred or cut
    words = split(text)
    if "jitter" in (order := [word for word, _ in words]) and "stack" in order[order.index("jitter") :]:
        raise Misconfigured(f"--see {text!r}: jitter comes after stack, so that all frames of a stack are changed alike")
    if "words" in order and not any(group.words for group in observations.values()):
        raise Misconfigured(f"--see {text!r}: words= is for a group of text, named by group=; there is none among {', '.join(observations)}")
    for word, value in words:
        if word not in {"group", RENDER, "words"} and not expanded:
            expanded = True
            groups = _add(steps, one_hot_where_needed(groups), groups)
        try:
            shown = groups if word == "group" or not several else {k: g for k, g in groups.items() if k != TASK}
            groups = _add(steps, _WORDS[word][0](value, shown), groups)
        except Misconfigured as error:
            raise Misconfigured(f"--see {text!r}: {error}") from None
    if not expanded:
        _add(steps, one_hot_where_needed(groups), groups)
    return Sense(observations, steps)


def named(text: str | None) -> frozenset[str]:
    """The groups that a ``--see`` names by ``group=`` or as ``render``; an environment is asked for those that it gives only on demand."""
    found: set[str] = set()
    for word, value in split(text) if text is not None else []:
        found |= {RENDER} if word == RENDER else {name.strip() for name in value.split("+")} if word == "group" else set()
    return frozenset(found)


def words(text: str | None, name: str) -> tuple[str, ...]:
    """The vocabulary that a ``--see`` gives the group of text ``name``: ``words=red+green`` or ``words=NAME:red+green``; none where it gives none."""
    for word, value in split(text) if text is not None else []:
        whose, colon, listed = value.rpartition(":")
        if word == "words" and (not colon or whose.strip() == name):
            return tuple(dict.fromkeys(listed.lower().split("+")))
    return ()


def needed(text: str | None, observations: Mapping[str, Group]) -> frozenset[str]:
    """The environment's groups that a policy with this ``--see`` reads; all of them without one."""
    return frozenset(observations) if text is None else frozenset(parse(text, observations).groups)


def _add(steps: list[Any], more: list[Any], groups: dict[str, Group]) -> dict[str, Group]:
    for step in more:
        groups = step.after(groups)
        steps.append(step)
    return groups


def _picked_groups(value: str, groups: Mapping[str, Group]) -> list[Any]:
    return [Pick([name.strip() for name in value.split("+")])]


def _crop(value: str, groups: Mapping[str, Group]) -> list[Any]:
    ranges = []
    for part in value.split("x"):
        found = _PLACES.fullmatch(part)
        if found is None or len(value.split("x")) > 2:
            raise Misconfigured(f"crop={value}: rows such as crop=34-193, or rows and columns such as crop=34-193x8-151, are right")
        ranges.append((int(found[1]), int(found[2] or found[1]) + 1))
    return [Crop(ranges[0], ranges[1] if len(ranges) == 2 else None, images(groups, "crop"))]


def _resize(value: str, groups: Mapping[str, Group]) -> list[Any]:
    sides, _, method = value.partition(":")
    height, cross, width = sides.partition("x")
    numbers = [_whole("resize", n.strip(), 1, 4096) for n in (height, width if cross else height)]
    return [Resize(numbers[0], numbers[1], method.strip() or "area", images(groups, "resize"))]


def _places(value: str, groups: Mapping[str, Group]) -> tuple[str, list[int]]:
    name, colon, listed = value.rpartition(":")
    vectors = [k for k, g in groups.items() if len(g.shape) == 1]
    if not colon:
        if len(vectors) != 1:
            raise Misconfigured(f"places are counted in one vector, and there are {len(vectors)} ({', '.join(groups)}): write NAME:{listed}, or group=NAME first")
        name = vectors[0]
    places: list[int] = []
    for part in listed.split(","):
        found = _PLACES.fullmatch(part)
        if found is None:
            raise Misconfigured(f"{part.strip()!r} is no place; a list such as 0,1,4-7 is right")
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < _LONGEST:
            raise Misconfigured(f"{part.strip()!r} is no range of places; 4-7 means 4, 5, 6 and 7")
        places += range(first, last + 1)
    return name, places


def _pick(value: str, groups: Mapping[str, Group]) -> list[Any]:
    return [Choose(*_places(value, groups))]


def _drop(value: str, groups: Mapping[str, Group]) -> list[Any]:
    name, places = _places(value, groups)
    Choose(name, places).after(groups)  # says so where a place isn't there
    return [Choose(name, [i for i in range(groups[name].shape[0]) if i not in places])]


def _stack(value: str, groups: Mapping[str, Group]) -> list[Any]:
    number, colon, apart = value.partition(":")
    count, gap = _whole("stack", number.strip(), 2, 64), _whole("stack=COUNT:GAP", apart.strip(), 1, 64) if colon else 1
    if scalars := [k for k, g in groups.items() if not g.shape]:
        raise Misconfigured(f"the group {scalars[0]!r} is a single number without an axis to stack along; leave it out with group=")
    if flat := [k for k, g in groups.items() if len(g.shape) == 2 and is_image(g)]:
        raise Misconfigured(f"the group {flat[0]!r} is an image without channels ({groups[flat[0]]}): stack it in the environment, with gymnasium's FrameStackObservation")
    axes = {k: 0 if len(g.shape) == 3 and g.shape[0] < g.shape[-1] else -1 for k, g in groups.items()}
    return [Stack(count, {k: g.shape for k, g in groups.items()}, axes, {k: g.dtype for k, g in groups.items()}, gap)]


def _jitter(value: str, groups: Mapping[str, Group]) -> list[Any]:
    return [Jitter(_real("jitter", value), images(groups, "jitter"))]


def _spectrogram(value: str, groups: Mapping[str, Group]) -> list[Any]:
    """``256x16``, with ``NAME:`` before it where several groups could be heard."""
    name, colon, sizes = value.rpartition(":")
    window, cross, bands = sizes.partition("x")
    heard = [k for k, g in groups.items() if is_waveform(g)]
    if not colon:
        heard = [k for k in heard if len(groups[k].shape) == 2] or heard
        if len(heard) != 1:
            raise Misconfigured(f"a waveform [samples] or [samples, channels] is heard, and there are {len(heard)} among {', '.join(groups)}: write NAME:{sizes}")
        name = heard[0]
    count = _whole("spectrogram", window.strip(), SHORTEST, 1 << 16)
    return [Spectrogram(count, _whole("spectrogram", bands.strip(), 1, 1 << 10) if cross else min(16, count // 2), [name.strip()])]


def _normalise(value: str, groups: Mapping[str, Group]) -> list[Any]:
    if value not in {"", "frozen", "running"}:
        raise Misconfigured(f"normalise={value}{nearest(value, ('frozen', 'running'))}: frozen (measured from the first rollout) or running (following what is seen) is right")
    return []


def _vocabulary(value: str, groups: Mapping[str, Group]) -> list[Any]:
    """No step: the environment's text is numbers of these words already."""
    whose, colon, listed = value.rpartition(":")
    if not all(re.fullmatch(r"\w+", word) for word in listed.split("+")):
        raise Misconfigured(f"words={value}: words with + between them are right, such as words=red+green+ball")
    if colon and whose.strip() not in groups:
        raise Misconfigured(f"words={value}: there is no group {whose.strip()!r}{nearest(whose.strip(), groups)}")
    return []


def running(text: str | None) -> bool:
    """Whether the student's normaliser follows what it sees as long as the run goes on."""
    return text is not None and ("normalise", "running") in split(text)


def _numbers(groups: Mapping[str, Group]) -> list[str]:
    return [k for k, g in groups.items() if len(g.shape) < 2]


def _whole(word: str, value: str, low: int, high: int) -> int:
    if not value.isascii() or not value.isdigit() or not low <= int(value[:9]) <= high:
        raise Misconfigured(f"{word}={value}: a whole number from {low} to {high} is right")
    return int(value)


def _real(word: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise Misconfigured(f"{word}={value}: a number is right") from None


_Make = Callable[[str, Mapping[str, Group]], list[Any]]
_WORDS: dict[str, tuple[_Make, str]] = {
    "group": (_picked_groups, "group=NAME, or group=NAME+NAME"),
    RENDER: (lambda _value, groups: _picked_groups(RENDER, groups), "render"),
    "crop": (_crop, "crop=34-193, or crop=34-193x8-151 (rows x columns)"),
    "grey": (lambda _value, groups: [Grey(images(groups, "grey"))], "grey"),
    "resize": (_resize, "resize=84, resize=84x96 or resize=84:bilinear"),
    "jitter": (_jitter, "jitter=0.2"),
    "pick": (_pick, "pick=0,1,4-7"),
    "drop": (_drop, "drop=2,3,5"),
    "stack": (_stack, "stack=4, or stack=4:3 for frames three steps apart"),
    "delay": (lambda value, groups: [Delay(_whole("delay", value, 1, 1000), groups)], "delay=2"),
    "clip": (lambda value, groups: [Clip(_real("clip", value), _numbers(groups))], "clip=5"),
    "noise": (lambda value, groups: [Noise(_real("noise", value), _numbers(groups))], "noise=0.1"),
    "quantise": (lambda value, groups: [Quantise(_real("quantise", value), _numbers(groups))], "quantise=0.01"),
    "spectrogram": (_spectrogram, "spectrogram=256x16 (window x bands), or spectrogram=NAME:256x16"),
    "words": (_vocabulary, "words=red+green+ball, or words=NAME:red+green+ball"),
    "normalise": (_normalise, "normalise, normalise=frozen or normalise=running"),
}
