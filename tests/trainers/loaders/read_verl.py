"""Rows that verl's dataset makes of the export in this folder, as JSON: ids and loss masks. TOKENIZER is a folder."""

import json
import os
import re
from pathlib import Path


def main() -> None:
    from omegaconf import OmegaConf
    from transformers import PreTrainedTokenizerFast
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    script = Path("sft.sh").read_text(encoding="utf-8")
    files = re.search(r"data\.train_files=\[(.*?)\]", script)[1].replace("'", "").split(",")
    given = dict(re.findall(r"data\.(messages_key|max_length|truncation)=(\S+)", script))
    config = OmegaConf.create({**given, "max_length": int(given["max_length"]), "pad_mode": "no_padding"})
    dataset = MultiTurnSFTDataset(files, PreTrainedTokenizerFast.from_pretrained(os.environ["TOKENIZER"]), config)
    rows = [dataset[i] for i in range(len(dataset))]
    print(json.dumps([[row["input_ids"].tolist(), row["loss_mask"].tolist()] for row in rows]))


if __name__ == "__main__":
    main()
