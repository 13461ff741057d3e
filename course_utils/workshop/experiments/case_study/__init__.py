"""The case study of chapter 21, step by step, from the baselines to a demo.

Nothing is imported here: the demo runs in an environment that has neither torch nor transformers.
"""
