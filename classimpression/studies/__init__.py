"""Questions beside the main comparison: drift, privacy, calibration, speed."""
