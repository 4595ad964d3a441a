"""Rows that NeMo-Automodel's ChatDataset reads of the export in this folder, as JSON: lists of role and content."""

import json
import sys
from pathlib import Path

import yaml


def main() -> None:
    from nemo_automodel.components.datasets.llm.chat_dataset import _load_openai_messages, _normalize_messages

    with Path("sft.yaml").open(encoding="utf-8") as file:
        config = yaml.safe_load(file)["dataset"]
    rows = _load_openai_messages(config["path_or_dataset_id"])
    print(
        json.dumps([[[turn["role"], turn["content"]] for turn in _normalize_messages(row["messages"])] for row in rows])
    )


if __name__ == "__main__":
    sys.exit(main())
