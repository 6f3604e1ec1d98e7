"""Reports: results to tables, plots and one HTML page."""
