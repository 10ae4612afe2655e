"""From stamps to scores: what is scored, by which checkpoints, and the tables of scores."""
