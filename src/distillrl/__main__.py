"""python -m distillrl"""

from distillrl.cli import run

run()
