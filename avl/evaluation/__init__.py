"""Answer quality: ``evaluate`` (policies), ``tasks`` (questions, scores), ``memory`` (equal memory), ``rows`` (what was measured, kept and
taken up again), ``sweep`` (quality by memory), ``figures`` (the paper's)."""
