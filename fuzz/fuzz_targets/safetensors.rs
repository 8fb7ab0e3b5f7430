#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| specialformer_fuzz::safetensors(bytes));
