"""The rules of the benchmark that decide numbers and that no setting of a suite can change."""

RULES = 2
"""Version of the rules, stored in every record; the numbers of two versions do not compare.

1: AdamW's eps is 1e-8; a trained step has the weight that its method returns.
2: AdamW's eps is 1e-15; step weights are scaled to mean 1 over the steps that may train. So the scale of a loss can no
longer act as a learning rate.
"""
