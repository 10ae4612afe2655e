"""`python -m lenstrain`, which torchrun can start in many processes."""

from lenstrain.cli import main

if __name__ == "__main__":
    main()
