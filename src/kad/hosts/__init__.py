"""The libraries that kad works inside, one module for each: every name of theirs that is not documented, checked.

`versions` says which versions are tested. `needs` holds the check and the one sentence for a host that has changed.
"""
