"""Search of hyper-parameters: trials on one study, from any number of workers; then refits."""
