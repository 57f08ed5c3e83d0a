"""Model inference as a workload: one transformer written against the array module, its weights, its ledgers, its load generator.

`specs` says what a model is made of, `model` runs it on any device, and everything else builds on those two.
"""
