"""Answer quality: ``evaluate`` (the command), ``tasks`` (questions, scores), ``sweep`` (quality by memory), ``figures`` (the paper's)."""
