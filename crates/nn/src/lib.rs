//! Layers, losses, optimisers, schedules and named parameters on the Specialformer tensor core.
