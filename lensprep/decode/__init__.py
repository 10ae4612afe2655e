"""From a compressed blob to the float16 that is stored, or the reason why it is rejected."""
