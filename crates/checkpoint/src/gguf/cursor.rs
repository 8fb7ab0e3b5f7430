//! Reading the parts of a GGUF file one after another.

use super::value::{GgufArray, GgufValue, ValueKind};
use crate::bytes::SharedBytes;

/// Arrays of arrays deeper than this are refused.
const MAX_DEPTH: usize = 4;

/// A place in the bytes of a file. Nothing is reserved before the bytes that
/// justify it are there.
pub(super) struct Cursor {
    bytes: SharedBytes,
    at: usize,
}

type Parsed<T> = Result<T, String>;

impl Cursor {
    pub(super) fn new(bytes: SharedBytes) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn take(&mut self, len: usize) -> Parsed<&[u8]> {
        let rest = &self.bytes[self.at..];
        if len > rest.len() {
            return Err(format!(
                "truncated: {len} bytes are needed at byte {}, {} are left",
                self.at,
                rest.len()
            ));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    pub(super) fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes as asked for"))
    }

    pub(super) fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things of which each takes at least `least` bytes.
    pub(super) fn count(&mut self, least: usize, what: &str) -> Parsed<usize> {
        let count = self.u64()?;
        let left = self.bytes.len() - self.at;
        match usize::try_from(count) {
            Ok(count) if count <= left / least => Ok(count),
            _ => Err(format!("{count} {what} cannot be in the {left} bytes that are left")),
        }
    }

    fn text(&mut self) -> Parsed<&[u8]> {
        let len = self.count(1, "bytes of text")?;
        self.take(len)
    }

    /// A text, checked after it was copied: the file may be written to.
    pub(super) fn string(&mut self) -> Parsed<String> {
        String::from_utf8(self.text()?.to_vec()).map_err(|e| format!("text: {}", e.utf8_error()))
    }

    pub(super) fn kind(&mut self) -> Parsed<ValueKind> {
        let number = self.u32()?;
        ValueKind::from_number(number).ok_or_else(|| format!("there is no value type {number}"))
    }

    pub(super) fn value(&mut self, kind: ValueKind, depth: usize) -> Parsed<GgufValue> {
        Ok(match kind {
            ValueKind::U8 => GgufValue::U8(self.array::<1>()?[0]),
            ValueKind::I8 => GgufValue::I8(self.array().map(i8::from_le_bytes)?),
            ValueKind::U16 => GgufValue::U16(self.array().map(u16::from_le_bytes)?),
            ValueKind::I16 => GgufValue::I16(self.array().map(i16::from_le_bytes)?),
            ValueKind::U32 => GgufValue::U32(self.u32()?),
            ValueKind::I32 => GgufValue::I32(self.array().map(i32::from_le_bytes)?),
            ValueKind::F32 => GgufValue::F32(self.array().map(f32::from_le_bytes)?),
            ValueKind::U64 => GgufValue::U64(self.u64()?),
            ValueKind::I64 => GgufValue::I64(self.array().map(i64::from_le_bytes)?),
            ValueKind::F64 => GgufValue::F64(self.array().map(f64::from_le_bytes)?),
            ValueKind::String => GgufValue::String(self.string()?),
            ValueKind::Bool => match self.array::<1>()?[0] {
                0 => GgufValue::Bool(false),
                1 => GgufValue::Bool(true),
                other => return Err(format!("{other} is no truth value")),
            },
            ValueKind::Array => {
                let (kind, len) = self.array_head(depth + 1)?;
                let start = self.at;
                self.skip(kind, len, depth + 1)?;
                // A copy, and checked as such: the file may be written to.
                let bytes = SharedBytes::from(self.bytes[start..self.at].to_vec());
                let mut copy = Self::new(bytes.clone());
                copy.check(kind, len, depth + 1)?;
                if copy.at != bytes.len() {
                    return Err("the file was written to while it was read".into());
                }
                GgufValue::Array(GgufArray { kind, len, bytes })
            }
        })
    }

    /// The type and the number of an array's elements.
    fn array_head(&mut self, depth: usize) -> Parsed<(ValueKind, usize)> {
        if depth > MAX_DEPTH {
            return Err(format!("arrays are nested deeper than {MAX_DEPTH}"));
        }
        let kind = self.kind()?;
        Ok((kind, self.count(kind.least_bytes(), "elements")?))
    }

    /// Checks the elements of an array on the way past them.
    fn check(&mut self, kind: ValueKind, len: usize, depth: usize) -> Parsed<()> {
        match kind {
            ValueKind::String => (0..len).try_for_each(|_| {
                std::str::from_utf8(self.text()?).map(|_| ()).map_err(|e| format!("text: {e}"))
            }),
            ValueKind::Bool => (0..len).try_for_each(|_| self.value(kind, depth).map(|_| ())),
            ValueKind::Array => (0..len).try_for_each(|_| {
                let (kind, len) = self.array_head(depth + 1)?;
                self.check(kind, len, depth + 1)
            }),
            _ => self.skip(kind, len, depth),
        }
    }

    /// Goes past the elements of an array.
    fn skip(&mut self, kind: ValueKind, len: usize, depth: usize) -> Parsed<()> {
        match kind {
            ValueKind::String => (0..len).try_for_each(|_| self.text().map(|_| ())),
            ValueKind::Array => (0..len).try_for_each(|_| {
                let (kind, len) = self.array_head(depth + 1)?;
                self.skip(kind, len, depth + 1)
            }),
            // The product fits: `count` compared it with the bytes left.
            _ => self.take(len * kind.least_bytes()).map(|_| ()),
        }
    }
}
