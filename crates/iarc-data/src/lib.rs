//! The IARC task-switching benchmark: generator, vocabulary, window splits and batches.
