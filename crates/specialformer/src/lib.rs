//! Transformers that specialise by task, on an ordinary CPU: models assembled from the Specialformer crates.
