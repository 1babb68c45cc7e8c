"""The public names of the rules: `kad.method.rules` under a short name, for users and for rules of their own."""

from kad.method.rules import *  # noqa: F403
from kad.method.rules import __all__  # noqa: F401
