"""`python -m lensprep`, where the console script is not on the path."""

from lensprep.cli import main

if __name__ == "__main__":
    main()
