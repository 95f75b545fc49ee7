import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Other people's teachers, which stay out of the repository."""
    path = ROOT.parent / "shared" / "teachers"
    if not path.is_dir():
        pytest.skip("the folder ../shared/teachers, with real teachers, is not here")
    return path


@pytest.fixture(scope="session")
def lander() -> Path:
    """The bundled LunarLander teacher (256×256, PPO)."""
    return ROOT / "examples" / "ppo_lunar.zip"
