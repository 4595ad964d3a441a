"""Training with TRL's SFTTrainer: on the rows of a run, and what `compare --trainer trl` shares with that."""
