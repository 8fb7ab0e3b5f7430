//! Training loop: sharded batches with reproducible bits, schedules, metrics, checkpoints and exact resume.
