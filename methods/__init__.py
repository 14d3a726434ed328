"""Methods: the papers and the baselines. Independent of data sets, protocols and results."""
