"""Answer quality: ``evaluate`` (policies), ``tasks`` (questions, scores), ``sweep`` (quality by memory), ``figures`` (the paper's)."""
