//! The integration tests of this crate in one program, so that it links once.

mod changed_data;
mod configs;
mod data_multitask;
mod data_records;
mod data_runs;
mod data_tasks;
mod data_text;
mod families;
mod golden_moe;
mod grow;
mod guide;
mod inventory;
mod models;
mod multimodal;
mod parameters_by_types;
mod pinned;
mod random_configs;
mod routing_trace;
mod specialformer;
mod stored;
mod svf;
mod width;
