//! [`GgufValue`]: a value of a GGUF file's metadata.

use std::fmt;

use super::cursor::Cursor;
use crate::bytes::SharedBytes;

/// The type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ValueKind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

/// The types in the order of their numbers in files.
const KINDS: [ValueKind; 13] = [
    ValueKind::U8,
    ValueKind::I8,
    ValueKind::U16,
    ValueKind::I16,
    ValueKind::U32,
    ValueKind::I32,
    ValueKind::F32,
    ValueKind::Bool,
    ValueKind::String,
    ValueKind::Array,
    ValueKind::U64,
    ValueKind::I64,
    ValueKind::F64,
];

impl ValueKind {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        KINDS.get(number as usize).copied()
    }

    pub(super) fn number(self) -> u32 {
        KINDS.iter().position(|kind| *kind == self).expect("the table holds every type") as u32
    }

    /// The fewest bytes that a value takes.
    pub(super) fn least_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// A value of a GGUF file's metadata.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum GgufValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(GgufArray),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl GgufValue {
    /// The value's type.
    pub fn kind(&self) -> ValueKind {
        match self {
            Self::U8(_) => ValueKind::U8,
            Self::I8(_) => ValueKind::I8,
            Self::U16(_) => ValueKind::U16,
            Self::I16(_) => ValueKind::I16,
            Self::U32(_) => ValueKind::U32,
            Self::I32(_) => ValueKind::I32,
            Self::F32(_) => ValueKind::F32,
            Self::Bool(_) => ValueKind::Bool,
            Self::String(_) => ValueKind::String,
            Self::Array(_) => ValueKind::Array,
            Self::U64(_) => ValueKind::U64,
            Self::I64(_) => ValueKind::I64,
            Self::F64(_) => ValueKind::F64,
        }
    }

    /// The value if it is an integer that is not negative.
    pub fn as_unsigned(&self) -> Option<u64> {
        self.as_integer().and_then(|value| u64::try_from(value).ok())
    }

    /// The value if it is an integer.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value if it is a number; integers convert.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            _ => self.as_integer().map(|v| v as f64),
        }
    }

    /// The value if it is a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(v) = self { Some(*v) } else { None }
    }

    /// The value if it is text.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(v) = self { Some(v) } else { None }
    }

    /// The value if it is an array.
    pub fn as_array(&self) -> Option<&GgufArray> {
        if let Self::Array(v) = self { Some(v) } else { None }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(v) => out.push(*v),
            Self::I8(v) => out.extend(v.to_le_bytes()),
            Self::U16(v) => out.extend(v.to_le_bytes()),
            Self::I16(v) => out.extend(v.to_le_bytes()),
            Self::U32(v) => out.extend(v.to_le_bytes()),
            Self::I32(v) => out.extend(v.to_le_bytes()),
            Self::F32(v) => out.extend(v.to_le_bytes()),
            Self::Bool(v) => out.push(u8::from(*v)),
            Self::String(v) => encode_str(v, out),
            Self::Array(v) => {
                out.extend(v.kind.number().to_le_bytes());
                out.extend((v.len as u64).to_le_bytes());
                out.extend_from_slice(&v.bytes);
            }
            Self::U64(v) => out.extend(v.to_le_bytes()),
            Self::I64(v) => out.extend(v.to_le_bytes()),
            Self::F64(v) => out.extend(v.to_le_bytes()),
        }
    }
}

pub(super) fn encode_str(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

macro_rules! from {
    ($($t:ty => $variant:ident),*) => {$(
        impl From<$t> for GgufValue {
            fn from(value: $t) -> Self {
                Self::$variant(value.into())
            }
        }
    )*};
}

from!(u8 => U8, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64);
from!(bool => Bool, &str => String, String => String, GgufArray => Array);

/// An array of metadata values of one type, kept as a copy of the file's bytes
/// and decoded when asked for: a vocabulary takes as much memory as in the file.
#[derive(Clone)]
pub struct GgufArray {
    pub(super) kind: ValueKind,
    pub(super) len: usize,
    /// The elements as in the file, which they are a checked copy of.
    pub(super) bytes: SharedBytes,
}

impl GgufArray {
    /// An array of the values given; `None` if their types differ.
    pub fn new(values: &[GgufValue]) -> Option<Self> {
        let kind = values.first().map_or(ValueKind::U32, GgufValue::kind);
        let mut bytes = Vec::new();
        for value in values {
            if value.kind() != kind {
                return None;
            }
            value.encode(&mut bytes);
        }
        Some(Self { kind, len: values.len(), bytes: bytes.into() })
    }

    /// An array of texts.
    pub fn of_strings<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Self {
        let (mut len, mut bytes) = (0, Vec::new());
        for text in texts {
            encode_str(text.as_ref(), &mut bytes);
            len += 1;
        }
        Self { kind: ValueKind::String, len, bytes: bytes.into() }
    }

    /// The type of the elements.
    pub fn kind(&self) -> ValueKind {
        self.kind
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, decoded one by one.
    pub fn values(&self) -> impl ExactSizeIterator<Item = GgufValue> {
        let mut cursor = Cursor::new(self.bytes.clone());
        (0..self.len).map(move |_| cursor.value(self.kind, 0).expect("checked when it was made"))
    }

    /// The elements if they are texts.
    pub fn strings(&self) -> Option<impl ExactSizeIterator<Item = &str>> {
        if self.kind != ValueKind::String {
            return None;
        }
        let mut rest: &[u8] = &self.bytes;
        Some((0..self.len).map(move |_| {
            let (len, after) = rest.split_first_chunk::<8>().expect("checked when it was made");
            let (text, after) = after.split_at(u64::from_le_bytes(*len) as usize);
            rest = after;
            std::str::from_utf8(text).unwrap_or_default()
        }))
    }
}

impl PartialEq for GgufArray {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, self.len) == (other.kind, other.len) && *self.bytes == *other.bytes
    }
}

impl fmt::Debug for GgufArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}; {}]", self.kind, self.len)
    }
}

/// As a person reads it: texts in quotes, arrays by their first elements.
impl fmt::Display for GgufValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(v) => write!(f, "{v}"),
            Self::String(v) => write!(f, "{v:?}"),
            Self::F32(v) => write!(f, "{v}"),
            Self::F64(v) => write!(f, "{v}"),
            Self::Array(v) => {
                const SHOWN: usize = 8;
                let shown: Vec<_> = v.values().take(SHOWN).map(|v| v.to_string()).collect();
                let more = if v.len > SHOWN { ", …" } else { "" };
                write!(f, "{} × {:?} [{}{more}]", v.len, v.kind, shown.join(", "))
            }
            _ => write!(f, "{}", self.as_integer().expect("the rest are integers")),
        }
    }
}
