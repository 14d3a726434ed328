"""Methods: the papers and the baselines. Knows nothing of datasets, protocols or results."""
