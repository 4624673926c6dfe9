"""From run folders to the committed records, tables, figures and verdicts of a study."""
