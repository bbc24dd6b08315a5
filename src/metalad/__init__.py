"""Image anomaly localization that trains on good images only."""
