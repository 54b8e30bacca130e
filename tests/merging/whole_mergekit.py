"""mergekit itself, its configuration and its merges of folders; what it imports warns of things of its own."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mergekit.config import ConditionalParameter, MergeConfiguration, evaluate_setting
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

__all__ = ["ConditionalParameter", "MergeConfiguration", "MergeOptions", "evaluate_setting", "run_merge"]
