"""Words of an observation (MiniGrid's ``mission``, gymnasium's Text) as category numbers of a fixed vocabulary, for who reads them.

A group of text is given where a policy names it (``--see group=image+mission``): whole numbers [length], 0 where the text has ended, 1 for a
word that the vocabulary lacks, 2 and on the words in their order. The vocabulary is part of the group, and so of a student's file; an
environment speaks to a loaded student in the student's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from distillrl.errors import Misconfigured
from distillrl.records import Group

Vocabulary = tuple[tuple[str, ...], int]
"""Words, and how many a text has at most; none and 0 for what the environment declares."""
OTHER, FIRST = 1, 2
"""The number of a word that the vocabulary lacks, and that of its first word."""
LENGTH = 32
"""Words that are read of a text whose space doesn't say how long it can be."""
_MANY = 4096
"""Texts that are made at most, of a space that says how, to know its words."""
_LONGEST = 1 << 10


class Ids(spaces.MultiDiscrete):
    """The space of a text as numbers of its words."""

    def __init__(self, words: Sequence[str], length: int) -> None:
        super().__init__([len(words) + FIRST] * length)
        self.words = tuple(words)


def is_text(space: spaces.Space[Any]) -> bool:
    """Whether a space is one of strings."""
    return space.dtype in (str, np.dtype(str))


def split(text: str, letters: bool) -> list[str]:
    """Its words in small letters, or its characters."""
    return list(text) if letters else re.findall(r"\w+", text.lower())


def encode(text: str, words: Mapping[str, int], length: int) -> np.ndarray:
    """[length] int64; ``words``: word → its number. What is longer is cut off. A vocabulary of single characters reads characters."""
    parts = split(text, all(len(w) == 1 for w in words))[:length]
    return np.array([words.get(w, OTHER) for w in parts] + [0] * (length - len(parts)), np.int64)


def numbered(words: Iterable[str]) -> dict[str, int]:
    """Word → number."""
    return {word: i for i, word in enumerate(words, FIRST)}


def given(value: Any, group: Group) -> Any:
    """A text, or an array of texts, as the numbers of a group of text; anything else as it is."""
    array = np.asarray(value)
    if not group.words or array.dtype.kind not in "UO":
        return value
    known, length = numbered(group.words), group.shape[0]
    coded = [encode(str(text), known, length) for text in array.reshape(-1)]
    return np.stack(coded).reshape(*array.shape, length)


def vocabulary(space: Any) -> Vocabulary:
    """The words that a space of strings declares, sorted, and how many a text has at most; no words where it doesn't say."""
    if isinstance(space, spaces.Text):
        return tuple(sorted(space.character_set)), min(space.max_length, _LONGEST)
    parts, make = getattr(space, "ordered_placeholders", None), getattr(space, "mission_func", None)
    if not parts or not callable(make):
        return (), LENGTH
    made = [split(str(make(*choice)), False) for choice in itertools.islice(itertools.product(*parts), _MANY + 1)]
    if len(made) > _MANY:
        return (), LENGTH
    return tuple(sorted({word for text in made for word in text})), max(map(len, made))


def of(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """The groups of strings of an observation space, by name."""
    parts = {str(k): s for k, s in space.spaces.items()} if isinstance(space, spaces.Dict) else {"obs": space}
    return {name: part for name, part in parts.items() if is_text(part)}


class Reading(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Its texts of these names become numbers of words: of the vocabulary given for them, else of the one that their space declares."""

    def __init__(self, env: gymnasium.Env[Any, Any], wanted: Mapping[str, Vocabulary]) -> None:
        super().__init__(env)
        there = of(env.observation_space)
        self._known: dict[str, tuple[dict[str, int], int]] = {}
        coded: dict[str, spaces.Space[Any]] = {}
        for name in wanted:
            if name not in there:
                raise Misconfigured(f"the environment has no words in a group {name!r}; it has {', '.join(there) or 'none'}")
            declared, length = vocabulary(there[name])
            words = wanted[name][0] or declared
            length = wanted[name][1] or length
            if not words:
                raise Misconfigured(f"the environment doesn't say which words its {name!r} is made of: name those that count, --see 'group=…+{name}, words={name}:red+green+ball+key'")
            self._known[name] = numbered(words), length
            coded[name] = Ids(words, length)
        self._whole = "obs" in coded and not isinstance(env.observation_space, spaces.Dict)
        self._last: dict[str, tuple[str, np.ndarray]] = {}
        own = env.observation_space
        self.observation_space = coded["obs"] if self._whole else spaces.Dict({**own.spaces, **coded})  # type: ignore[attr-defined]  # a Dict

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """With the words as numbers."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._read(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """With the words as numbers."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._read(obs), reward, terminated, truncated, info

    def _read(self, obs: Any) -> Any:
        if self._whole:
            return self._coded("obs", obs)
        return {**obs, **{name: self._coded(name, obs[name]) for name in self._known}}

    def _coded(self, name: str, text: Any) -> np.ndarray:
        before = self._last.get(name)  # a mission stays the same for an episode
        if before is None or before[0] != text:
            self._last[name] = before = (text, encode(str(text), *self._known[name]))
        return before[1]


def reading(maker: Callable[..., gymnasium.Env[Any, Any]], wanted: Mapping[str, Vocabulary]) -> Callable[..., gymnasium.Env[Any, Any]]:
    """A maker of environments whose texts of these names are read."""

    def make(**more: Any) -> gymnasium.Env[Any, Any]:
        return Reading(maker(**more), wanted)

    return make


def read_by(groups: Mapping[str, Group]) -> dict[str, Vocabulary]:
    """What the groups of text among these are made of, by name."""
    return {name: (group.words, group.shape[0]) for name, group in groups.items() if group.words}
