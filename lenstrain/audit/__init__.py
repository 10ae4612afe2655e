"""The readiness checklist: whether a run is fit to be published or used."""
