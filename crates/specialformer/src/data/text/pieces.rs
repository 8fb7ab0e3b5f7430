//! Files cut into documents, and documents into pieces of bounded size.

use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};

/// What is a document: an end is put after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Documents {
    /// Each file.
    #[default]
    File,
    /// What stands between blank lines.
    Paragraph,
    /// Each line.
    Line,
}

/// A piece of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub bytes: Vec<u8>,
    /// Whether the document ends with it.
    pub ends_document: bool,
}

/// Reads a file as pieces of at most `limit` bytes, holding no more than
/// about twice that. Concatenated, the pieces of a document are its bytes;
/// line breaks and blank lines that separate documents are dropped.
pub(crate) struct Pieces<R> {
    reader: R,
    documents: Documents,
    limit: usize,
    /// Bytes of the current document that were not yet given.
    buffer: Vec<u8>,
    ended: bool,
}

impl<R: BufRead> Pieces<R> {
    pub(crate) fn new(reader: R, documents: Documents, limit: usize) -> Self {
        Self { reader, documents, limit, buffer: Vec::new(), ended: false }
    }

    /// The next piece; `None` at the end of the file.
    pub(crate) fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            // One byte more than a piece, to know whether a full piece is the
            // document's last.
            if self.buffer.len() > self.limit {
                let at = cut(&self.buffer[..self.limit]);
                let rest = self.buffer.split_off(at);
                let bytes = std::mem::replace(&mut self.buffer, rest);
                return Ok(Some(Piece { bytes, ends_document: false }));
            }
            if self.ended {
                let bytes = std::mem::take(&mut self.buffer);
                return Ok((!bytes.is_empty()).then_some(Piece { bytes, ends_document: true }));
            }
            if self.read_some()? == 0 {
                self.ended = true;
            } else if self.ends_here() {
                let bytes = std::mem::take(&mut self.buffer);
                if !bytes.is_empty() {
                    return Ok(Some(Piece { bytes, ends_document: true }));
                }
            }
        }
    }

    /// Appends up to the next line break, or as much as a piece holds.
    fn read_some(&mut self) -> io::Result<usize> {
        let room = self.limit + 1 - self.buffer.len();
        let available = self.reader.fill_buf()?;
        let available = &available[..available.len().min(room)];
        let line = available.iter().position(|&b| b == b'\n').map(|at| at + 1);
        let read = line.unwrap_or(available.len());
        self.buffer.extend_from_slice(&available[..read]);
        self.reader.consume(read);
        Ok(read)
    }

    /// Whether a document ends with the line break that was just read; the
    /// separator is then removed.
    fn ends_here(&mut self) -> bool {
        let Some((b'\n', line)) = self.buffer.split_last() else { return false };
        match self.documents {
            Documents::File => false,
            Documents::Line => {
                let body = line.len() - usize::from(line.ends_with(b"\r"));
                self.buffer.truncate(body);
                true
            }
            Documents::Paragraph => {
                let start = line.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
                let blank = matches!(&line[start..], b"" | b"\r");
                if blank {
                    self.buffer.truncate(start);
                }
                blank
            }
        }
    }
}

/// Where to cut a piece: after its last white space if that lies in its
/// second half, else between characters.
fn cut(bytes: &[u8]) -> usize {
    let half = bytes.len() / 2;
    if let Some(at) = bytes[half..].iter().rposition(|b| b.is_ascii_whitespace()) {
        return half + at + 1;
    }
    // A UTF-8 character has at most three bytes after its first.
    let last = bytes.len() - 1;
    for back in 0..last.min(4) {
        let byte = bytes[last - back];
        if byte < 0x80 {
            break;
        }
        if byte >= 0xc0 {
            let width = if byte >= 0xf0 { 4 } else { 2 + usize::from(byte >= 0xe0) };
            return if width > back + 1 { last - back } else { bytes.len() };
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(text: &[u8], documents: Documents, limit: usize, buffer: usize) -> Vec<Piece> {
        let reader = io::BufReader::with_capacity(buffer, text);
        let mut pieces = Pieces::new(reader, documents, limit);
        std::iter::from_fn(|| pieces.next().unwrap()).collect()
    }

    fn documents(pieces: &[Piece]) -> Vec<Vec<u8>> {
        let mut documents = vec![Vec::new()];
        for piece in pieces {
            documents.last_mut().unwrap().extend(&piece.bytes);
            if piece.ends_document {
                documents.push(Vec::new());
            }
        }
        assert_eq!(documents.pop(), Some(Vec::new()), "the last piece ends its document");
        documents
    }

    fn text() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("\n".to_string()),
            Just("\n\n".to_string()),
            Just(" ".to_string()),
            "[a-zé\u{4e2d}\u{1f600}]{1,9}",
        ];
        proptest::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn pieces_make_up_the_documents(text in text(), limit in 8_usize..40, buffer in 1_usize..50) {
            let text = text.as_bytes();
            let of = |documents_are| {
                let pieces = pieces(text, documents_are, limit, buffer);
                for piece in &pieces {
                    prop_assert!(!piece.bytes.is_empty() && piece.bytes.len() <= limit);
                    prop_assert!(std::str::from_utf8(&piece.bytes).is_ok(), "{:?}", piece);
                }
                Ok(documents(&pieces))
            };
            let whole: Vec<_> = (!text.is_empty()).then(|| text.to_vec()).into_iter().collect();
            prop_assert_eq!(of(Documents::File)?, whole);

            let lines = text.split(|&b| b == b'\n').filter(|line| !line.is_empty());
            prop_assert_eq!(of(Documents::Line)?, lines.map(<[u8]>::to_vec).collect::<Vec<_>>());

            // A paragraph keeps its line breaks, the last one included.
            let mut paragraphs = vec![Vec::new()];
            for line in text.split_inclusive(|&b| b == b'\n') {
                match line {
                    b"\n" => paragraphs.push(Vec::new()),
                    line => paragraphs.last_mut().unwrap().extend_from_slice(line),
                }
            }
            paragraphs.retain(|p: &Vec<u8>| !p.is_empty());
            prop_assert_eq!(of(Documents::Paragraph)?, paragraphs);
        }
    }

    #[test]
    fn windows_line_ends_separate_too() {
        let text = b"one\r\ntwo\r\n\r\nthree\r\n";
        let bytes = |documents| -> Vec<_> {
            pieces(text, documents, 100, 4).into_iter().map(|p| p.bytes).collect()
        };
        assert_eq!(bytes(Documents::Line), [&b"one"[..], b"two", b"three"]);
        assert_eq!(bytes(Documents::Paragraph), [&b"one\r\ntwo\r\n"[..], b"three\r\n"]);
    }
}
