"""The deferral rules: which tokens of the base model p are kept, and which products of models exist.

A rule is a frozen dataclass that checks its own parameters and round-trips through a string ("dual:threshold=0.4") and
a dict. To add one, write one class in the file of its family, or register a class of your own with `register`, or name
it in the entry point group `kad.rules` of your package.

Sources: [Kad] Hammal, Zweigenbaum, Corro, EACL 2026. [Rejection] the same, ACL 2026. [Cascades] Narasimhan et al.,
ICLR 2025. [Nudging] Fei et al., 2025. [Diverse] static ensemble verification. [EFT] Mitchell et al., 2024. [Proxy]
Liu et al., 2024. [CD] Li et al., ACL 2023; O'Brien and Lewis, 2023.
"""

from kad.rules.base import (
    CascadeRule,
    ProductRule,
    Rule,
    ThresholdRule,
    package_of,
    parse_rule,
    register,
    registry,
    skipped_plugins,
)
from kad.rules.cascade import AlignedAbove, AlignedBelow, LinearProgram, Mixture
from kad.rules.product import Contrastive, ImplicitReward, Product
from kad.rules.threshold import Always, ConfidenceBet, Dual, Never, Nudging, Primal, Relative

__all__ = [
    "AlignedAbove",
    "AlignedBelow",
    "Always",
    "CascadeRule",
    "ConfidenceBet",
    "Contrastive",
    "Dual",
    "ImplicitReward",
    "LinearProgram",
    "Mixture",
    "Never",
    "Nudging",
    "Primal",
    "Product",
    "ProductRule",
    "Relative",
    "Rule",
    "ThresholdRule",
    "package_of",
    "parse_rule",
    "register",
    "registry",
    "skipped_plugins",
]
