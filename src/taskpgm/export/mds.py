"""MDS, the shards of mosaicml-streaming."""

import json
from pathlib import Path

from taskpgm.errors import UserError
from taskpgm.export.carry import Form
from taskpgm.export.handover import Handover, Written, columns, exact

LOADER = '''"""The mixture as a StreamingDataset; needs the package mosaicml-streaming."""

from pathlib import Path

from streaming import Stream, StreamingDataset

HERE = Path(__file__).parent
ROWS = {rows}


def dataset(batch_size=8, shuffle=True):
    """Exactly so many rows of each task an epoch."""
    streams = [Stream(local=str(HERE / "mds" / name), choose=count) for name, count in ROWS.items()]
    return StreamingDataset(streams=streams, batch_size=batch_size, shuffle=shuffle, shuffle_seed={seed})
'''


def write_mds(handover: Handover, folder: Path) -> Written:
    """`mds/<task>/` with columns `messages` and `tools` (JSON), and `loader.py`, which chooses the counts."""
    try:
        from streaming import MDSWriter
    except ImportError as error:
        raise UserError(f"mosaicml-streaming cannot be loaded ({error}); install it with all that it needs.") from error

    encodings = {"messages": "json"} | ({"tools": "json"} if handover.has_tools else {})
    for task in handover.tasks:
        with MDSWriter(out=str(folder / "mds" / task.stem), columns=encodings) as writer:
            for row in handover.conversations(task):
                writer.write(columns(handover, row, Form(flag="weight")))
    rows = json.dumps({task.stem: task.plan.count for task in handover.tasks}, indent=4, ensure_ascii=False)
    (folder / "loader.py").write_text(LOADER.format(rows=rows, seed=handover.seed), encoding="utf-8")
    sees = exact(handover)
    if handover.by == "counts":
        sees = f"exact counts: {handover.size}; streaming repeats whole passes and draws the rest."
    keeps = ("`choose` is exact; `proportion` would need an epoch size.", "`weight: 0` marks answers that are context.")
    return Written(sees, "```python\nfrom loader import dataset\n\ndataset()[0]\n```", keeps)
