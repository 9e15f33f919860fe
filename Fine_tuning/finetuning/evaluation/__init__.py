"""Step 3: predictions -> error rates with confidence intervals, tables and the report page."""
