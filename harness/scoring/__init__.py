"""From reports to capability, score and price: reads files and records, never a device, a clock or a network."""

# Imported here and at once, not lazily: a function named as its module is otherwise shadowed by that module as soon as
# anybody imports it. It stays cheap because nothing below loads NumPy or pandas (a test watches).
from harness.scoring.capability import capability
from harness.scoring.costs import Costs, load_costs
from harness.scoring.price import quote
from harness.scoring.score import profiles, score

__all__ = ["Costs", "capability", "load_costs", "profiles", "quote", "score"]
