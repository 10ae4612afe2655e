"""Hyper-parameter search: trials of one study, run by any number of workers; then refits."""
