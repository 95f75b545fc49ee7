"""What several verbs of the command line take: the environment, the teacher; parsing imports no torch."""

from __future__ import annotations

from typing import Any

import click

from distillrl.errors import Misconfigured

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


def env_kwargs_of(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any] | None:
    """``gravity=-5`` becomes {"gravity": -5}; a value that isn't TOML is text."""
    import tomllib

    given: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise click.BadParameter(f"{text!r}: write it as name=value, such as gravity=-5")
        try:
            given[name.strip()] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            given[name.strip()] = value
    return given or None


ENV_OPTIONS = [
    click.option("--env", help="Gymnasium id, or module:id; by default what the teacher's file names."),
    click.option("--env-kwargs", multiple=True, callback=env_kwargs_of, metavar="NAME=VALUE", help="Keyword argument of the environment; may be repeated."),
    click.option("--backend", help="auto, gymnasium, gymnasium:1, gymnasium:2 (processes), envpool, or ale (Atari games, by default)."),
    click.option("--max-episode-steps", type=int, help="Cut episodes after so many steps."),
    click.option("--seed", type=int, help="One seed for everything; 0 by default."),
]
TEACHER_OPTIONS = [
    click.option("--format", "format_", help="The teacher file's format, where it can't be told by looking."),
    click.option("--model", help="module:Class of a network for a bare state dict."),
    click.option("--vecnormalize", help="VecNormalize statistics that lie elsewhere than beside the teacher."),
    click.option("--teacher-sees", help="What the teacher sees, such as group=state."),
    click.option("--concurrency", type=click.IntRange(1), help="Requests at a time to a teacher on a server.  [default: 8]"),
    click.option("--trust", is_flag=True, default=None, help="Run the teacher file's own code, where its format needs that. No known format does."),
]

SEVERAL_OPTIONS = [
    click.option("--teachers", metavar="A,B,…", help="Several teachers in place of one."),
    click.option("--combine", help="How several become one: average (the default), confidence, value, product or best."),
    click.option("--dispatch", metavar="CASES", help="Which of several is asked, by the observation: 'level<3:0, else:1', or 'task'."),
]


def names_of(teachers: str | None) -> tuple[str, ...] | None:
    """``a.zip,b.zip`` → both; None where the option wasn't given."""
    return tuple(part.strip() for part in teachers.split(",") if part.strip()) if teachers is not None else None


def one_or_several(what: str, one: str | None, teachers: str | None, combine: str | None, dispatch: str | None) -> str | list[str]:
    """The policy that a verb is about: ``one``, or the list of several; raises Misconfigured where neither or both are named."""
    several = list(names_of(teachers) or ())
    if (one is None) == (not several):
        raise Misconfigured(f"name {what}, or several teachers with --teachers a.zip,b.zip; " + ("both were given" if several else "neither was given"))
    if len(several) < 2 and (several or combine or dispatch):
        raise Misconfigured("several teachers are named with --teachers a.zip,b.zip; --combine and --dispatch say how they become one")
    if combine and dispatch:
        raise Misconfigured(f"--combine {combine} and --dispatch {dispatch!r}: one of them says how several teachers become one")
    return several or str(one)


def with_options(options: list[Any]) -> Any:
    """All of them on a verb, shown in this order."""
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
