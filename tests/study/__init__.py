"""Studies that take minutes: what the audit finds, and how often it is wrong."""
