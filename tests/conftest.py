"""Models that several tests share, and which tests need torch."""

import importlib.util
from pathlib import Path

import pytest
from support.models import ARCHITECTURES, make_model

TORCH = ("workers", "lm", "probes", "trainer", "evaluation", "pipeline", "cli")  # folders whose tests need taskpgm[lm]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """The half behind `Scores`, rows and mixtures, is tested without torch too."""
    return True if collection_path.name in TORCH and importlib.util.find_spec("torch") is None else None


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(root / name, name) for name in ARCHITECTURES}
