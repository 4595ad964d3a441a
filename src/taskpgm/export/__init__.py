"""What trainers read: `train.jsonl`, and a mixture in the form of every trainer that is known."""
