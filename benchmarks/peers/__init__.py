"""What others offer for the same work, each in the setting that its own users would take.

Their modules run in child processes only, so that one that cannot be imported, hangs or leaks ends
as a row of the table that says so.
"""
