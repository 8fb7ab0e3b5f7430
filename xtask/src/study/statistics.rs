//! Summaries of repeated runs.
