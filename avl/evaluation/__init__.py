"""Answer quality: ``evaluate`` (policies), ``turns`` (conversations), ``tasks`` (questions, scores), ``memory`` (equal memory), ``rows``
(what was measured, kept and taken up again), ``sweep`` (quality by memory), ``runs_table`` (runs as CSV), ``figures`` (the paper's)."""
