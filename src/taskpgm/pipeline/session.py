"""`Session`: an experiment, its run directory and its engine, as every stage is given them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskpgm.config import Config
from taskpgm.lm.engine import Engine
from taskpgm.pipeline.artifacts import Artifacts
from taskpgm.pipeline.directory import RunDirectory
from taskpgm.progress import Progress, plain_lines
from taskpgm.system import wait_passively


@dataclass(frozen=True)
class Session:
    """An experiment and the run directory that it is worked out in."""

    config: Config
    artifacts: Artifacts
    engine: Engine  # the base model, loaded when a stage first needs it

    @property
    def progress(self) -> Progress:
        """Hears of stages, and in a sentence what is made again and why, and what went otherwise than planned."""
        return self.engine.progress


@contextmanager
def open_session(config: Config, out: Path | str, progress: Progress | None = None) -> Iterator[Session]:
    """Within, only this process works on the run directory `out`, made if missing.

    Raises:
        UserError: another process works on it, or it is a file.
    """
    wait_passively()
    with RunDirectory(out) as directory:
        progress = progress or plain_lines()
        engine = Engine(config.model, progress, config.workers)

        def header() -> dict[str, Any]:
            model = {"path": config.model.path, "fingerprint": engine.fingerprint}
            return {"model": model, "settings": config.model_dump(mode="json")}

        try:
            yield Session(config, Artifacts(directory, header, progress), engine)
        finally:
            engine.close()
