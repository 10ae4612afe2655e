"""Tables that a user names: read in every common format, and written."""
