"""Which files a source reads: one file, a folder's files of one split, or what a pattern matches.

The split of a file is told by its name and by those of its folders, by the words that `datasets` goes by. If they
do not tell, the user is asked: nobody trains on a test set because it lay beside the training set.
"""

import glob
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from taskpgm.config import Source
from taskpgm.errors import UserError
from taskpgm.files import files_below, is_lost
from taskpgm.paths import is_pattern, literal_folders, local_path
from taskpgm.progress import many

Kind = Literal["json", "csv", "parquet", "arrow"]

SUFFIXES: dict[str, Kind] = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
PACKED = (".gz", ".zst", ".bz2", ".xz")  # around a text file
READABLE = (
    ".jsonl, .ndjson, .json, .csv, .tsv (or one of these with .gz, .zst, .bz2 or .xz behind it), .parquet, .arrow or "
    ".feather file"
)
NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
CACHED = re.compile(r"cache-.*\.arrow")  # left by datasets' map and filter
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
SHARD = re.compile(r"[-_.]\d{3,}[-_.]of[-_.]\d{3,}.*")  # train-00000-of-00002, old ones with a hash at the end
HUMPED = re.compile(r"(?<=[a-z])[A-Z][a-z]+|[a-z]+(?=[A-Z])")  # words in quizTrain
NTH_SHARD = re.compile(r"(.*?)[-_.](\d{3,})[-_.]of[-_.](\d{3,})")
FRONT_MATTER = re.compile(r"\ufeff?---\s*\n(.*?\n)---\s*(\n|$)", re.DOTALL)
NUMBERED = re.compile(r"(part|shard|chunk|file|batch)\d+")


class Files(NamedTuple):
    """Files that a source reads, in order."""

    paths: list[Path]
    base: Path  # the folder that messages name them from
    notes: tuple[str, ...] = ()  # what `check` says of the choice

    def name(self, path: Path) -> str:
        """What messages call one of the files."""
        return path.relative_to(self.base).as_posix()


class Asked(NamedTuple):
    """What is wanted of a path, and how messages speak of it."""

    who: str
    key: Literal["path", "validation"]  # the setting that names the path
    path: str
    split: str
    unnamed: str  # the split of files none of whose names says one
    subset: str | None


def asked_of(source: Source, who: str, path: str | None = None) -> Asked:
    """What a source reads: its own path and split, or the validation split of the path given."""
    if path is None:
        return Asked(who, "path", source.path, source.split, "train", source.subset)
    return Asked(who, "validation", path, "validation", "validation", source.subset)


def files_of(asked: Asked) -> Files | None:
    """Files that are read, all that the rows depend on; None if nothing local has that name, so a hub id might.

    Raises:
        UserError: no file of the split, no telling which ones they are, or a name that cannot be written down.
    """
    found = _files_of(asked)
    for path in found.paths if found else ():
        if not _is_text(str(path)):
            shown = os.fsencode(path).decode(errors="replace")
            raise UserError(
                f"{asked.who}: the name of {shown} is no UTF-8, which a run could not write down; rename it."
            )
    return found


def _is_text(name: str) -> bool:
    """Whether the name is UTF-8; Python has stand-ins for bytes that are not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files_of(asked: Asked) -> Files | None:
    local = local_path(asked.path)
    if local.is_file():
        return Files([local], local.parent, _unused(asked, "a file"))
    if is_saved(local):
        return _of_saved(local, asked)
    if local.is_dir():
        return _of_folder(local, asked)
    return _of_pattern(str(literal_folders(local, Path())), asked) if is_pattern(asked.path) else None


def kind_of(path: Path) -> Kind | None:
    """json, csv, parquet or arrow, as the end of the name says; None for what cannot be read."""
    name = path.name.lower()
    packed = name.endswith(PACKED)
    kind = SUFFIXES.get(Path(Path(name).stem if packed else name).suffix)
    return None if packed and kind in ("parquet", "arrow") else kind


def bare(name: str) -> str:
    """The name without .gz and its like, and without what says the kind."""
    return Path(Path(name).stem if name.lower().endswith(PACKED) else name).stem


def is_saved(folder: Path) -> bool:
    """Whether datasets' save_to_disk wrote the folder: files of the same names by others do not have its keys."""
    of_one = (folder / "dataset_info.json").is_file() and _has_key(folder / "state.json", "_data_files")
    return of_one or _has_key(folder / "dataset_dict.json", "splits")


def _has_key(path: Path, key: str) -> bool:
    """Whether there is such a file with an object that has the key; one that is broken might have it."""
    if not path.is_file():
        return False
    try:
        return key in json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        return True


def pick_split(names: Sequence[str], split: str) -> str | None:
    """The one of these splits that is meant: of that name, or the only one with another name for it."""
    same = [name for name in names if SPLIT_OF.get(name) == SPLIT_OF.get(split, split)]
    return split if split in names else same[0] if len(same) == 1 else None


def named(names: Iterable[str], most: int = 4) -> str:
    """Names as words: a, b and c; of many the first few and how many more there are."""
    names = list(names)
    shown = names if len(names) <= most + 1 else [*names[:most], f"{len(names) - most} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


# Folders and patterns


class _Found(NamedTuple):
    path: Path
    shown: str  # its name from the folder given
    folders: tuple[str, ...]  # names of the folders between, in lower case
    stem: str  # its own, without endings and without the number of the shard

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.folders, self.stem)


def _of_folder(folder: Path, asked: Asked) -> Files:
    beside = _found([file for file in files_below(folder, hidden=(".", "_"), lost=True) if kind_of(file)], folder)
    found = [file for file in beside if file.path.name not in NO_DATA and not CACHED.fullmatch(file.path.name)]
    found = _of_subset(found, asked) if asked.subset else found
    if not found:
        raise UserError(f"{asked.who}: the folder {folder} holds no {READABLE}; name another in `{asked.key}`.")
    chosen = _one_set(_of_split(found, asked), asked)
    _check_kinds(chosen, asked)
    _check_readme(folder, chosen, asked)
    taken = set(chosen)
    left = [file.shown for file in beside if file not in taken]
    note = f"reads {named(file.shown for file in chosen)}" + (f", not {named(left)} in the same folder" if left else "")
    notes = ((note,) if left or len(chosen) > 1 else ()) + _missing(chosen)
    return Files([file.path for file in chosen], folder, notes)


def _of_pattern(pattern: str, asked: Asked) -> Files:
    matched = sorted({Path(match) for match in glob.glob(pattern, recursive=True)})  # noqa: PTH207 (an absolute one)
    matched = [path for path in matched if path.is_file() or is_lost(path)]
    readable = [path for path in matched if kind_of(path) and path.name not in NO_DATA]
    files = _once(readable)
    if not files:
        what = f"only what is no {READABLE}" if matched else "no file"
        raise UserError(f"{asked.who}: the pattern {pattern} matches {what}; correct it in `{asked.key}`.")
    again = set(readable) - set(files)
    matched = [path for path in matched if path not in again]
    base = next(path for path in files[0].parents if all(path in file.parents for file in matched))
    found = _found(files, base)
    found = _of_subset(found, asked) if asked.subset else found
    chosen = found if asked.split == asked.unnamed else _of_split(found, asked)
    _check_kinds(chosen, asked)
    twice = (f"of the names that match, {len(again)} are links to files that are read under another",) if again else ()
    return Files([file.path for file in chosen], base, _of_matched(chosen, matched, base) + twice + _missing(chosen))


def _once(paths: list[Path]) -> list[Path]:
    """The paths, of those that links make of one file only the one with the fewest links, or else the shortest."""
    ways: dict[Path, list[Path]] = {}
    for path in paths:
        ways.setdefault(path if is_lost(path) else path.resolve(), []).append(path)
    return sorted(min(same, key=lambda path: (path != real, len(path.parts))) for real, same in ways.items())


def _of_matched(chosen: list[_Found], matched: list[Path], base: Path) -> tuple[str, ...]:
    """Note of what a pattern came to."""
    taken = {file.path for file in chosen}
    left = [path.relative_to(base).as_posix() for path in matched if path not in taken]
    splits = sorted({split for file in chosen for split in _splits(file.names)})
    note = f"the pattern reads {many(len(chosen), 'file')}: {named(file.shown for file in chosen)}"
    note += f"; going by their names they are of the splits {named(splits)}" if len(splits) > 1 else ""
    return (note + (f"; not {named(left)}" if left else ""),)


def _missing(chosen: list[_Found]) -> tuple[str, ...]:
    """Notes of shards that are not there, going by names such as train-00001-of-00003."""
    shards: dict[tuple[str, str], set[str]] = defaultdict(set)
    for file in chosen:
        if named_so := NTH_SHARD.match(file.shown):
            shards[named_so[1], named_so[3]].add(named_so[2])
    return tuple(
        f"reads {len(there)} of the {int(total)} files {start}-…-of-{total}"
        for (start, total), there in shards.items()
        if len(there) < int(total)
    )


def _below(folder: Path) -> list[Path]:
    """Files in the folder and below, but for hidden ones and those in folders of tools (.git, __MACOSX, _delta_log)."""
    return files_below(folder, hidden=(".", "_"))


def _found(paths: Iterable[Path], base: Path) -> list[_Found]:
    found = []
    for path in paths:
        within = path.relative_to(base)
        folders = tuple(_spaced(part) for part in within.parent.parts)
        found.append(_Found(path, within.as_posix(), folders, SHARD.sub("", _spaced(bare(path.name)))))
    return found


def _spaced(name: str) -> str:
    """The name in lower case, with spaces around a split that capitals set off: quizTrain is quiz train."""
    spaced = HUMPED.sub(lambda word: f" {word[0]} " if word[0].lower() in SPLIT_OF else word[0], name)
    return spaced.strip().lower()


def _of_subset(found: list[_Found], asked: Asked) -> list[_Found]:
    chosen = [file for file in found if str(asked.subset).lower() in file.folders]
    if not chosen and asked.key == "validation":
        return found
    if not chosen:
        folders = sorted({folder for file in found for folder in file.folders})
        there = f"the folders there with data are {named(folders)}" if folders else "it has no folder with data"
        raise UserError(
            f"{asked.who}: {asked.path} has no folder for the subset {asked.subset!r}; {there}. Correct `subset`, or "
            "leave it out."
        )
    return chosen


def _of_split(found: list[_Found], asked: Asked) -> list[_Found]:
    """The files of the split asked for."""
    wanted = SPLIT_OF.get(asked.split.lower())
    splits = [_splits(file.names) for file in found]
    torn = [file for file, one in zip(found, splits, strict=True) if wanted in one and len(one) > 1]
    if torn:
        raise UserError(
            f"{asked.who}: {named(file.shown for file in torn)} in {asked.path} could be of more than one split "
            f"going by names; {_remedy(asked, torn[0])}."
        )
    if wanted is None:
        chosen = [file for file in found if _called(file, asked.split)]
    else:
        chosen = [file for file, one in zip(found, splits, strict=True) if one == {wanted}]
    if not chosen and not any(splits) and asked.split == asked.unnamed:
        return found
    if not chosen:
        raise UserError(_no_split(found, splits, asked))
    return chosen


def _splits(names: Sequence[str]) -> set[str]:
    """Splits that the names of a file and its folders say: those that a name consists of, or else contains."""
    said = [_words(name) for name in names]
    whole = {SPLIT_OF[words[0]] for words in said if len(words) == 1 and words[0] in SPLIT_OF}
    return whole or {SPLIT_OF[word] for words in said for word in words if word in SPLIT_OF}


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-._ =0-9]+", name) if word]


def _called(file: _Found, split: str) -> bool:
    """Whether the file or one of its folders has exactly that name, but for a number behind it."""
    return any(name == split.lower() or _words(name) == [split.lower()] for name in file.names)


def _no_split(found: list[_Found], splits: list[set[str]], asked: Asked) -> str:
    said: dict[str, list[str]] = {}
    for file, one in zip(found, splits, strict=True):
        said.setdefault(" or ".join(sorted(one)), []).append(file.shown)
    there = [f"{split} ({named(names, 2)})" for split, names in sorted(said.items()) if split]
    there += [f"{named(said[''])} with no split in the name"] if "" in said else []
    known = [split for split in SPLITS if split in said]
    set_split = f"set `split: {known[0]}`, or " if known and asked.key == "path" else ""
    return (
        f"{asked.who}: {asked.path} has no file of the split {asked.split!r}; it has {named(there)}; "
        f"{set_split}{_remedy(asked, found[0])}."
    )


def _remedy(asked: Asked, file: _Found) -> str:
    """What names the files to read: a pattern for such a file and its like, unless it takes in other splits too."""
    ending = file.path.name.removeprefix(bare(file.path.name))
    like = Path(glob.escape(str(file.path.parent))) / f"{(_words(file.stem) or [''])[0]}*{ending}"
    alike = _found((Path(match) for match in glob.glob(str(like))), file.path.parent)  # noqa: PTH207
    other = any(_splits([one.stem]) != _splits([file.stem]) for one in alike)
    return f"name what to read in `{asked.key}`, " + (
        f"such as the file {file.path}" if other else f"a file or a pattern such as {like}"
    )


# Whether files can be read as one set


def _check_readme(folder: Path, chosen: list[_Found], asked: Asked) -> None:
    """Raise if the front matter of a README.md sorts by split, or into subsets, files whose names do not."""
    told = bool(asked.subset) or any(_splits(file.names) for file in chosen)
    parts = [] if told else _parts_of_readme(folder / "README.md")
    if len(parts) > 1:
        raise UserError(
            f"{asked.who}: {folder / 'README.md'} sorts the files of {folder} into {named(parts)}, which their names "
            f"do not say; {_remedy(asked, chosen[0])}."
        )


def _parts_of_readme(readme: Path) -> list[str]:
    """What the `configs` of a data set of the hub name: "train (data/a-*)"; none if there are none."""
    try:
        front = FRONT_MATTER.match(readme.read_text(encoding="utf-8"))
        given = yaml.safe_load(front[1]) if front else None
    except (OSError, ValueError, yaml.YAMLError):
        return []
    parts = []
    for one in _objects(given.get("configs") if isinstance(given, dict) else None):
        files = one.get("data_files")
        splits = _objects(files) or [{"split": one.get("config_name"), "path": files}]
        parts += [f"{split.get('split')} ({split.get('path')})" for split in splits]
    return parts


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _one_set(chosen: list[_Found], asked: Asked) -> list[_Found]:
    """The files, if they are parts of one set; of a folder those that are called exactly like the split, if any."""
    sets = {_folders_of(file): file for file in reversed(chosen)}
    if len(sets) == 1:
        called = [file for file in chosen if _called(file, asked.split)]
        chosen = called or chosen
        sets = {(_stem_of(file),): file for file in reversed(chosen)}
    if len(sets) == 1:
        return chosen
    folders = sorted({file.folders[-1] for file in sets.values() if file.folders} - set(SPLIT_OF))
    subset = f"set `subset` (say {folders[0]}), or " if len(folders) > 1 and not asked.subset else ""
    raise UserError(
        f"{asked.who}: {asked.path} has more than one set of files for the split {asked.split!r} "
        f"({named(sorted(file.shown for file in sets.values()))}); {subset}{_remedy(asked, chosen[0])}."
    )


def _folders_of(file: _Found) -> tuple[str, ...]:
    return tuple(NUMBERED.sub(r"\1", folder) for folder in file.folders)


def _stem_of(file: _Found) -> str:
    """What tells the file from the others of its split, but for numbers; nothing if only its folder has a split."""
    if not _splits([file.stem]):
        return ""
    words = (re.sub(f"^({'|'.join(SPLIT_OF)})\\d+$", r"\1", word) for word in re.split(r"[-._ =]+", file.stem))
    return " ".join(NUMBERED.sub(r"\1", word) for word in words if not word.isdigit())


def _check_kinds(chosen: list[_Found], asked: Asked) -> None:
    """Raise if the files are of several kinds, or one of them is there twice."""
    lost = [file.shown for file in chosen if is_lost(file.path)]
    if lost:
        raise UserError(
            f"{asked.who}: in {asked.path} {named(lost)} {'are links' if len(lost) > 1 else 'is a link'} to what is "
            "not there; fetch it again, or remove the link."
        )
    kinds = {kind_of(file.path): file for file in chosen}
    forms = Counter((*file.folders, bare(file.path.name.lower())) for file in chosen)
    twice = [file for file in chosen if forms[(*file.folders, bare(file.path.name.lower()))] > 1]
    if len(kinds) > 1 or twice:
        shown = [file.shown for file in twice or kinds.values()]
        what = "the same file in several forms" if twice else f"{named(sorted(map(str, kinds)))} files"
        raise UserError(f"{asked.who}: {asked.path} mixes {what} ({named(shown)}); {_remedy(asked, chosen[0])}.")


# Saved datasets


def _of_saved(folder: Path, asked: Asked) -> Files:
    if not _has_key(folder / "dataset_dict.json", "splits"):
        return Files(_saved_files(folder), folder, _unused(asked, "a saved dataset without splits"))
    splits = [path.name for path in folder.iterdir() if path.is_dir()]
    own = folder / (pick_split(splits, asked.split) or "")
    return Files(_saved_files(own), folder, _unused(asked._replace(split=asked.unnamed), "a saved dataset"))


def _saved_files(folder: Path) -> list[Path]:
    return [path for path in _below(folder) if not path.name.startswith("cache-")]


def _unused(asked: Asked, what: str) -> tuple[str, ...]:
    """Note of the settings that such a path has no use for."""
    given = [f"`split: {asked.split}`"] if asked.split != asked.unnamed else []
    given += [f"`subset: {asked.subset}`"] if asked.subset and asked.key == "path" else []
    verb = "is" if len(given) == 1 else "are"
    return (f"{named(given)} {verb} not used: `{asked.key}` names {what}",) if given else ()
