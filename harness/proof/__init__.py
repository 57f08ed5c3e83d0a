"""Seals, signatures and chains: what lets a third party judge a report without trusting who sends it."""
