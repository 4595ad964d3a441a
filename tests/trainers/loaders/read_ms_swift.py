"""Rows that ms-swift's loader reads of the export in this folder, as JSON: lists of role and content."""

import json
import os
from pathlib import Path

import yaml

os.environ["USE_HF"] = "1"


def main() -> None:
    from swift.dataset import load_dataset

    with Path("sft.yaml").open(encoding="utf-8") as file:
        config = yaml.safe_load(file)
    shuffle, ratio = config["dataset_shuffle"], config["split_dataset_ratio"]
    rows, held_out = load_dataset(config["dataset"], split_dataset_ratio=ratio, shuffle=shuffle, seed=config["seed"])
    assert held_out is None
    print(json.dumps([[[turn["role"], turn["content"]] for turn in row["messages"]] for row in rows]))


if __name__ == "__main__":
    main()
