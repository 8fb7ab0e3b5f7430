//! Test support: comparator, numerical gradient check and golden-file reader.
