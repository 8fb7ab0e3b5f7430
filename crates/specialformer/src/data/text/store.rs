//! A long sequence of tokens, in memory or in a temporary file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Mutex;

/// Bytes that are held before they are appended to the file.
const WRITE_BYTES: usize = 1 << 20;

/// Tokens that are appended once and read anywhere. Beyond a number of bytes
/// they go to a temporary file that vanishes with the store.
#[derive(Debug)]
pub(crate) struct TokenStore {
    /// Bytes of a token.
    width: usize,
    /// What is not in the file.
    memory: Vec<u8>,
    file: Option<Mutex<File>>,
    file_bytes: u64,
    memory_limit: usize,
    last: Option<u32>,
}

impl TokenStore {
    /// A store for tokens below `vocabulary`.
    pub(crate) fn new(vocabulary: usize, memory_limit: usize) -> Self {
        let width = if vocabulary <= 1 << 16 { 2 } else { 4 };
        Self { width, memory: Vec::new(), file: None, file_bytes: 0, memory_limit, last: None }
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> u64 {
        (self.file_bytes + self.memory.len() as u64) / self.width as u64
    }

    /// The last token.
    pub(crate) fn last(&self) -> Option<u32> {
        self.last
    }

    pub(crate) fn push(&mut self, tokens: &[u32]) -> io::Result<()> {
        for &token in tokens {
            self.memory.extend_from_slice(&token.to_le_bytes()[..self.width]);
        }
        self.last = tokens.last().copied().or(self.last);
        let limit = if self.file.is_some() { WRITE_BYTES } else { self.memory_limit };
        if self.memory.len() > limit {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(Mutex::new(tempfile::tempfile()?));
        }
        let file = self.file.as_mut().expect("it was just made");
        let file = file.get_mut().expect("no reader panics while it reads");
        file.seek(SeekFrom::End(0))?;
        file.write_all(&self.memory)?;
        self.file_bytes += self.memory.len() as u64;
        self.memory = Vec::new();
        Ok(())
    }

    /// Reads `tokens.len()` tokens from `start`, all of which must be there;
    /// `bytes` is scratch.
    pub(crate) fn read(
        &self,
        start: u64,
        tokens: &mut [u32],
        bytes: &mut Vec<u8>,
    ) -> io::Result<()> {
        let from = start * self.width as u64;
        let len = tokens.len() * self.width;
        let in_file = (self.file_bytes.saturating_sub(from) as usize).min(len);
        bytes.clear();
        bytes.resize(in_file, 0);
        if in_file > 0 {
            let file = self.file.as_ref().expect("bytes are in the file");
            let mut file = file.lock().expect("no reader panics while it reads");
            file.seek(SeekFrom::Start(from))?;
            file.read_exact(bytes)?;
        }
        if in_file < len {
            let at = (from + in_file as u64 - self.file_bytes) as usize;
            bytes.extend_from_slice(&self.memory[at..at + len - in_file]);
        }
        for (token, bytes) in tokens.iter_mut().zip(bytes.chunks_exact(self.width)) {
            let mut wide = [0; 4];
            wide[..self.width].copy_from_slice(bytes);
            *token = u32::from_le_bytes(wide);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_read_was_pushed(
            parts in proptest::collection::vec(proptest::collection::vec(0_u32..60_000, 0..40), 1..12),
            limit in 0_usize..200,
            wide: bool,
            cuts in proptest::collection::vec((0.0..1.0, 0.0..1.0), 8),
        ) {
            let mut store = TokenStore::new(if wide { 1 << 20 } else { 60_000 }, limit);
            for part in &parts {
                store.push(part).unwrap();
            }
            let all = parts.concat();
            prop_assert_eq!(store.len(), all.len() as u64);
            prop_assert_eq!(store.last(), all.last().copied());
            let mut bytes = Vec::new();
            for (a, b) in cuts {
                let start = (a * all.len() as f64) as usize;
                let len = (b * (all.len() - start) as f64) as usize;
                let mut tokens = vec![0; len];
                store.read(start as u64, &mut tokens, &mut bytes).unwrap();
                prop_assert_eq!(&tokens, &all[start..start + len]);
            }
        }
    }
}
