"""Rows that LLaMA-Factory's loader reads of the export in this folder, as JSON: lists of role and content."""

import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path

import yaml

os.environ["DISABLE_VERSION_CHECK"] = "1"
for name in ("torchaudio", "av", "omegaconf"):  # imported for sound, films and its own settings; not for text
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.OmegaConf = object
    sys.modules[name] = module


def main() -> None:
    from llamafactory.data.loader import _get_merged_dataset
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    with Path("sft.yaml").open(encoding="utf-8") as file:
        config = yaml.safe_load(file)
    names = {f.name for f in DataArguments.__dataclass_fields__.values()}
    data = DataArguments(**{key: value for key, value in config.items() if key in names})
    training = Seq2SeqTrainingArguments(output_dir="unused", use_cpu=True, bf16=False)
    model = ModelArguments(model_name_or_path=config["model_name_or_path"])
    rows = _get_merged_dataset(data.dataset, model, data, training, "sft")
    read = []
    for row in rows:
        system = [{"role": "system", "content": row["_system"]}] if row["_system"] else []
        read.append([[turn["role"], turn["content"]] for turn in (*system, *row["_prompt"], *row["_response"])])
    print(json.dumps(read))


if __name__ == "__main__":
    main()
