"""From reports to capability, score and price: reads files and records, never a device, a clock or a network.

from harness.scoring import price
own = price(report_bytes, profile="decode")     # a Quote: typed, immutable, the same to the last digit anywhere
"""

# Imported here and at once, not lazily: a function named as its module is otherwise shadowed by that module as soon as
# anybody imports it. It stays cheap because nothing below loads NumPy or pandas (a test watches).
from harness.scoring.capability import capability
from harness.scoring.costs import Costs, load_costs
from harness.scoring.evidence import price
from harness.scoring.price import quote
from harness.scoring.profiles import Profile, load_profile, profiles
from harness.scoring.recompute import recompute
from harness.scoring.score import score
from harness.scoring.terms import Deal

__all__ = [
    "Costs",
    "Deal",
    "Profile",
    "capability",
    "load_costs",
    "load_profile",
    "price",
    "profiles",
    "quote",
    "recompute",
    "score",
]
