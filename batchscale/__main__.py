"""`python -m batchscale`, where the command line is not on the path."""

from batchscale.cli import main

if __name__ == "__main__":
    main()
