"""How good a finder is, and how sure we are: from a table of scores, without a GPU."""
