"""A finder as one file that others can run: raw stamps in, a calibrated probability out."""
