"""Rows that Axolotl's loader makes of the export in this folder, as JSON: ids and labels. TOKENIZER is a folder."""

import json
import os
from pathlib import Path

import yaml


def main() -> None:
    from axolotl.utils.data.sft import _load_raw_datasets
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.config import AxolotlInputConfig
    from transformers import AutoTokenizer

    with Path("axolotl.yaml").open(encoding="utf-8") as file:
        given = yaml.safe_load(file) | {"base_model": os.environ["TOKENIZER"]}
    checked = AxolotlInputConfig(**given).model_dump(exclude_none=True)
    config = DictDefault(checked | {"dataset_prepared_path": "prepared", "dataset_num_proc": 1, "dataset_processes": 1})
    tokenizer = AutoTokenizer.from_pretrained(os.environ["TOKENIZER"])
    rows, _ = _load_raw_datasets(config, config.datasets, tokenizer, "train")
    print(json.dumps([[row["input_ids"], row["labels"]] for row in rows]))


if __name__ == "__main__":
    main()
