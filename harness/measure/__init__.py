"""How a benchmark is timed, and whether the result may be believed."""
