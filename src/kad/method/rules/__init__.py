"""The deferral rules: which tokens of the base model p are kept, and which products of models exist.

A rule is a frozen dataclass that checks its own parameters. It can be written as a string ("dual:threshold=0.4") or a
dict, and read back. To add a rule, write a class in the file of its family, or register your own class with `register`,
or name it in the entry point group `kad.rules` of your package.

Reading a rule needs no torch, and importing torch takes a second. So it is imported here where a rule meets its first
row, and a mistyped rule is refused at once.

Sources: [Kad] Hammal, Zweigenbaum, Corro, EACL 2026. [Rejection] the same, ACL 2026. [Cascades] Narasimhan et al.,
ICLR 2025. [Nudging] Fei et al., 2025. [Diverse] static ensemble verification. [EFT] Mitchell et al., 2024. [Proxy]
Liu et al., 2024. [CD] Li et al., ACL 2023; O'Brien and Lewis, 2023.
[AAD] Berdoz et al., ICML 2026. [BlendIn] Gan, Li and Luo, Findings of ACL 2026.
[CFG] Sanchez et al., ICML 2024. [CAD] Shi et al., NAACL 2024.
"""

from kad.method.rules.cascade import Blend, LinearProgram, Mixture, Veto
from kad.method.rules.product import Contrastive, Experts, ImplicitReward, Product
from kad.method.rules.row_rules import RowRules
from kad.method.rules.rule import (
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
from kad.method.rules.threshold import AlignedOnly, BaseOnly, ConfidenceBet, Dual, Nudging, Primal, Relative

__all__ = [
    "AlignedOnly",
    "BaseOnly",
    "Blend",
    "CascadeRule",
    "ConfidenceBet",
    "Contrastive",
    "Dual",
    "Experts",
    "ImplicitReward",
    "LinearProgram",
    "Mixture",
    "Nudging",
    "Primal",
    "Product",
    "ProductRule",
    "Relative",
    "RowRules",
    "Rule",
    "ThresholdRule",
    "Veto",
    "package_of",
    "parse_rule",
    "register",
    "registry",
    "skipped_plugins",
]
