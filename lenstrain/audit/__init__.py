"""The readiness checklist: is this run fit to be published or put to use."""
