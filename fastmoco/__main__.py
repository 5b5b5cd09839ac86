"""`python -m fastmoco`: the command line, where the command `fastmoco` is not on the path."""

import sys

from fastmoco.cli import main

if __name__ == "__main__":
    sys.exit(main())
