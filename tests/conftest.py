"""Models that several tests share, a cache of their own, and which tests need torch."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.models import ARCHITECTURES, OTHERS, make_model, write_model

from taskpgm.files import cache_folder

TORCH = (
    "chat",
    "workers",
    "lm",
    "probes",
    "trainer",
    "evaluation",
    "pipeline",
    "cli",
)  # folders whose tests need taskpgm[lm]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """The half behind `Scores`, rows and mixtures, is tested without torch too."""
    return True if collection_path.name in TORCH and importlib.util.find_spec("torch") is None else None


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache, but for models that were converted before, which takes long."""
    folder, models = tmp_path_factory.mktemp("cache"), cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKPGM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(root / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def other_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("others")
    return {name: write_model(root / name, name, settings) for name, (settings, _) in OTHERS.items()}
