"""The training program: `train` is its story, the other modules its parts."""
