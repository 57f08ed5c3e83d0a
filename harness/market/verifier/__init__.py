"""Challenges over a network: the verifier that holds the clock, and the prover that answers it."""
