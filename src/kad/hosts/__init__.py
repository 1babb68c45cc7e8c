"""The hosts: libraries that kad works inside. Each has a module with the undocumented names that kad needs, checked.

`versions` says which versions are tested. `needs` has the check, and the sentence for a host that has changed.
"""
