"""Studies that take minutes: what statistics promise, what the audit finds, how often each errs."""
