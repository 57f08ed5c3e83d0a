"""Which jobs run where, each in a process of its own, and how their outcomes become a report."""
