"""What LLaMA-Factory makes of the export in this folder, as JSON.

Lists of role and content; with TOKENS, ids and labels under its template chatml. TOKENIZER is a folder.
"""

import importlib.machinery
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    if "TOKENS" in os.environ:
        print(json.dumps(list(tokens(data, rows))))
        return
    read = []
    for row in rows:
        system = [{"role": "system", "content": row["_system"]}] if row["_system"] else []
        read.append([[turn["role"], turn["content"]] for turn in (*system, *row["_prompt"], *row["_response"])])
    print(json.dumps(read))


def tokens(data: Any, rows: Any) -> Iterator[tuple[list[int], list[int]]]:
    from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(os.environ["TOKENIZER"])
    data.template = "chatml"
    processor = SupervisedDatasetProcessor(get_template_and_fix_tokenizer(tokenizer, data), tokenizer, None, data)
    for row in rows:
        yield processor._encode_data_example(
            row["_prompt"], row["_response"], row["_system"], row["_tools"], [], [], []
        )


if __name__ == "__main__":
    main()
