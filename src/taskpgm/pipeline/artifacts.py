"""`Artifacts`: what a run directory holds. Where a thing lies, what it depends on, whether it is stale, its record.

Nothing here knows what the things are for. A thing is a folder with a key: the parts that it depends on, by name, and
the hash of each. The manifest records every finished stage: its parts, seconds, memory and facts.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskpgm.errors import UserError
from taskpgm.files import KEY_FILE, Parts, atomic_file, atomic_folder, digest, loaded, read_json, write_json
from taskpgm.pipeline.directory import RunDirectory, differing, stale_because
from taskpgm.progress import Progress
from taskpgm.system import Clock, environment


class Artifacts:
    """The things in one run directory.

    Args:
        directory: held by this process.
        header: what the manifest says beside versions, hardware and stages; asked for when it is written.
        progress: is told in a sentence what is made again, and why.
    """

    def __init__(self, directory: RunDirectory, header: Callable[[], Mapping[str, Any]], progress: Progress) -> None:
        self.path = directory.path
        self.manifest: dict[str, Any] = directory.manifest()
        self.made: set[str] = set()  # stages of which something was made anew by this process
        self._directory = directory
        self._header = header
        self._progress = progress

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def is_stale(self, what: str, folder: Path, parts: Parts) -> bool:
        """Whether a folder has to be made; said aloud if it is there but depends on something that changed."""
        why = stale_because(folder, parts)
        if why not in (None, "missing"):
            self._progress.say(f"{what} is made again: {why} changed")
        return why is not None

    def key(self, folder: Path) -> str:
        """Hash of what a folder was made from."""
        return digest(loaded(read_json, folder / KEY_FILE))

    def parts(self, folder: Path) -> Parts | None:
        """What a folder was made from; None if it is not there."""
        path = folder / KEY_FILE
        return loaded(read_json, path) if path.is_file() else None

    def name(self, folder: Path) -> str:
        """The folder as the manifest names it."""
        return str(folder.relative_to(self.path))

    @contextmanager
    def folder(self, folder: Path, parts: Parts, stage: str) -> Iterator[Path]:
        """A folder to write to, which takes the place of the old one; `stage` is not finished until it is recorded."""
        self.forget(stage)
        with atomic_folder(folder, parts) as scratch:
            yield scratch

    def file(self, name: str) -> Any:
        """A path to write to, which takes the file's place when the block ends well."""
        return atomic_file(self.path / name)

    def write_json(self, name: str, data: Any) -> None:
        """Data as JSON, in one piece or not at all."""
        write_json(self.path / name, data)

    def recorded(self, stage: str) -> dict[str, Any]:
        """The record of a finished stage.

        Raises:
            UserError: it is not finished.
        """
        found = self.manifest.get("stages", {}).get(stage)
        if found is None:
            before = {"pool": "probe"}.get(stage, stage)
            raise UserError(
                f"{self.path} has no finished stage {stage!r}; run `taskpgm {before}` or `taskpgm run` first."
            )
        return dict(found)

    def differs(self, stage: str, parts: Parts) -> str | None:
        """Names of the parts in which a stage's record differs from these; 'missing' if it is not finished."""
        found = self.manifest.get("stages", {}).get(stage)
        return "missing" if found is None else differing(found["parts"], parts)

    def forget(self, stage: str) -> None:
        """Take a stage out of the manifest before its files change, so that a crash leaves none that does not match."""
        self.made.add(stage)
        if self.manifest.get("stages", {}).pop(stage, None) is not None:
            self._directory.write_manifest(self.manifest)

    def record(self, stage: str, parts: Parts, clock: Clock | None = None, **facts: Any) -> None:
        """Say in the manifest that a stage is finished: what it depends on, and what it took."""
        if clock is not None:
            facts = {"seconds": clock.seconds, "peak_memory": clock.peak(), **facts}
        facts["seconds"] = round(facts["seconds"], 3)
        stages = {**self.manifest.get("stages", {}), stage: {"parts": dict(parts), **facts}}
        self.manifest = {**environment(), **self._header(), "stages": stages}
        self._directory.write_manifest(self.manifest)
