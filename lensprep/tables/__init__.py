"""Tables that a user names: read in every common form, and written."""
