"""What several verbs of the command line take: the environment, the teacher; parsing imports no torch."""

from __future__ import annotations

from typing import Any

import click

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


def with_options(options: list[Any]) -> Any:
    """All of them on a verb, shown in this order."""
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
