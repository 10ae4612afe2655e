"""The training program: `train` is its outline, the other modules its parts."""
