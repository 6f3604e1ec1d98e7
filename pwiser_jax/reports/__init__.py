"""Reports: tables, plots and an HTML page of results."""
