"""What many runs make together: grids, statistics, tables, forecasts."""
