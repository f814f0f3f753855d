"""Tables, figures and verdicts from finished runs."""
