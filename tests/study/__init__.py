"""What the statistics promise, tried on simulated surveys whose truth is known."""
