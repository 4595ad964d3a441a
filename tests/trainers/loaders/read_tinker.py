"""Rows that the builder of Tinker's cookbook reads of the export in this folder, as JSON: lists of role and content."""

import json
import os
import runpy


def main() -> None:
    builder = runpy.run_path("builder.py")["builder"]
    dataset, held_out = builder(model=os.environ["TOKENIZER"], renderer="role_colon")()
    assert held_out is None
    dataset.set_epoch(0)
    datums = [dataset.get_batch(i) for i in range(len(dataset))]
    assert all(datum.loss_fn_inputs["weights"].tolist() for batch in datums for datum in batch)
    print(
        json.dumps([[[turn["role"], turn["content"]] for turn in row["messages"]] for row in dataset.shuffle_dataset])
    )


if __name__ == "__main__":
    main()
