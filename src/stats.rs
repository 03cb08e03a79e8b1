//! Summaries of samples: centre, spread, interval, outliers, ratios.
