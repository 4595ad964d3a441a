"""What the trainers' own loaders read of an export is its plan. `make test-trainers` prepares their environments."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.handovers import COUNTS, make_handover, of_all_kinds, planned
from support.models import make_tokenizer

from taskpgm.export.handover import Handover
from taskpgm.export.write import export_plan

# Its loop variable is not `message`, the name in whose keys Axolotl looks for what a template reads.
CALLING_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m['content'] }}"
    "{% for call in m.tool_calls or [] %}{{ '<call>' + (call.function | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
pytestmark = pytest.mark.trainers
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILT = Path(os.environ.get("TRAINERS", ROOT / "build/trainers"))


def read_by(loader: str, folder: Path, tokenizer: Path) -> Any:
    """What a loader prints, run in the folder of an export."""
    path = os.pathsep.join([str(BUILT / loader), str(ROOT / "src"), str(ROOT / "tests")])
    env = os.environ | {
        "PYTHONPATH": path, "TOKENIZER": str(tokenizer), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
    }  # fmt: skip
    script = [sys.executable, HERE / f"loaders/read_{loader}.py"]
    done = subprocess.run(script, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def multiset(rows: Iterable[Any]) -> Counter[Any]:
    return Counter(tuple(tuple(turn) for turn in row) for row in rows)


def by_task(handover: Handover, found: Counter[Any]) -> dict[str, int]:
    """How many of the rows are training rows of each task; every row must be one of some task."""
    counts = dict.fromkeys(handover.pool.names, 0)
    own = {task.name: {_turns(row) for row in task.train} for task in handover.pool.tasks}
    for row, times in found.items():
        counts[next(name for name, rows in own.items() if row in rows)] += times
    return counts


def _turns(row: Any) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, turn.content) for turn in row.conversation.messages)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.mark.parametrize("to", ["llama-factory", "ms-swift", "nemo-automodel", "tinker", "torchtune"])
def test_rows_are_the_plan(to: str, tmp_path: Path, tokenizer: Path) -> None:
    handover = make_handover()
    export_plan(handover, to, tmp_path / "out")
    loader = {"nemo-automodel": "nemo"}.get(to, to.replace("-", "_"))
    assert multiset(read_by(loader, tmp_path / "out", tokenizer)) == planned(handover)


@pytest.mark.parametrize("to", ["llama-factory", "ms-swift"])
def test_counts_are_the_plans(to: str, tmp_path: Path, tokenizer: Path) -> None:
    handover = make_handover(by="counts")
    export_plan(handover, to, tmp_path / "out")
    read = multiset(read_by(to.replace("-", "_"), tmp_path / "out", tokenizer))
    assert by_task(handover, read) == COUNTS


@pytest.mark.parametrize("to", ["axolotl", "verl", "llama-factory"])
def test_tokens_and_masks_are_ours(to: str, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of every row are those of the chat template, as often as the plan has them; answers alone are learned."""
    check_tokens(make_handover(), to, tmp_path, tokenizer, monkeypatch)


def test_axolotl_reads_calls_tools_and_thoughts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tokenizer(tmp_path / "tokenizer", CALLING_TEMPLATE)
    check_tokens(of_all_kinds(), "axolotl", tmp_path, tmp_path / "tokenizer", monkeypatch)


def check_tokens(handover: Handover, to: str, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    from taskpgm.chat.encoder import ChatEncoder

    export_plan(handover, to, tmp_path / "out")
    ours: Counter[Any] = Counter()
    known = AutoTokenizer.from_pretrained(tokenizer)
    encoder = ChatEncoder(known, handover.max_length)
    for _, row in handover.in_order():
        (encoded,) = encoder.encode([row])
        assert encoded is not None
        learned = encoded.response.tolist()
        if to != "axolotl":  # they also learn what the template writes behind the end of a turn, ChatML's line break
            ends = (encoded.ids[:-1] == known.eos_token_id) & encoded.response[:-1]
            learned = [before or now for before, now in zip([False, *ends.tolist()], learned, strict=True)]
        ours[tuple(encoded.ids.tolist()), tuple(learned)] += 1
    theirs: Counter[Any] = Counter()
    monkeypatch.setenv("TOKENS", "yes")
    for ids, marks in read_by(to.replace("-", "_"), tmp_path / "out", tokenizer):
        learned = [bool(mark) for mark in marks] if to == "verl" else [mark != -100 for mark in marks]
        theirs[tuple(ids), tuple(learned)] += 1
    assert theirs == ours
