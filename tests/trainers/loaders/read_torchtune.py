"""Rows that torchtune's datasets read of the export in this folder, as JSON: lists of role and content."""

import json
from pathlib import Path

import yaml


class Tokenizer:
    """Hands the messages on, where a model's would tokenise them."""

    def __call__(self, sample: dict, inference: bool = False) -> dict:
        turns = [[message.role, message.text_content] for message in sample["messages"]]
        masked = [message.masked for message in sample["messages"]]
        assert masked == [role != "assistant" for role, _ in turns]
        return {"turns": turns, "tokens": [], "mask": []}


def main() -> None:
    from torchtune.datasets import chat_dataset

    with Path("dataset.yaml").open(encoding="utf-8") as file:
        datasets = yaml.safe_load(file)["dataset"]
    read = []
    for given in datasets:
        assert given.pop("_component_") == "torchtune.datasets.chat_dataset"
        dataset = chat_dataset(Tokenizer(), **given)
        read += [dataset._model_transform(dataset._message_transform(row))["turns"] for row in dataset._data]
    print(json.dumps(read))


if __name__ == "__main__":
    main()
