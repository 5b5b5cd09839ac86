"""`python -m fastmoco`: the command line, where the command `fastmoco` is not on the path."""

from fastmoco.cli import program

if __name__ == "__main__":
    program()
