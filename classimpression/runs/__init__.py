"""From settings to finished runs: configurations, the run store, the engine, tables, tuning."""
