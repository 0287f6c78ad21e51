"""Texts in a CSV file."""


def cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula, which it would run, nor after blanks that it drops."""
    return "'" + text if text.lstrip()[:1] in ("=", "+", "-", "@") or text[:1] in ("\t", "\r", "\n") else text
