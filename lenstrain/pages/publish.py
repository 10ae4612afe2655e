"""Names of what `lenstrain evaluate` writes."""

METRICS_NAME = "metrics.json"
"""By this file a folder is known as an evaluation."""
REPORT_NAME = "report.html"
CARD_NAME = "model_card.md"
