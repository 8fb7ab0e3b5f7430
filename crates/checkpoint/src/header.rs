//! The header of a safetensors file: names, element types, shapes, offsets.
//!
//! Parsed here and not by the `safetensors` crate, so that the message names
//! the tensor at fault, sizes near the integer limits cannot overflow, and
//! equal content gives equal bytes (its metadata is an unordered map).

use std::collections::BTreeMap;
use std::fmt;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

/// The longest header that the format allows.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// Length of the field that holds the header's length.
pub(crate) const LENGTH_FIELD: u64 = 8;

pub(crate) const METADATA_KEY: &str = "__metadata__";

#[derive(Debug, Default)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Parses a header and checks that its tensors cover exactly `data_len`
    /// bytes. Sizes in the result are safe to compute with.
    pub(crate) fn parse(json: &[u8], data_len: u64) -> Result<Self, String> {
        let header: Self = serde_json::from_slice(json).map_err(|e| format!("header: {e}"))?;
        header.check_offsets(data_len)?;
        Ok(header)
    }

    fn check_offsets(&self, data_len: u64) -> Result<(), String> {
        let mut order: Vec<_> = self.tensors.iter().collect();
        order.sort_by_key(|(_, info)| info.data_offsets);
        let mut at = 0;
        for (name, info) in order {
            let (start, end) = info.data_offsets;
            let bytes = byte_len(info.dtype, &info.shape).ok_or_else(|| {
                format!("tensor `{name}`: {} of shape {:?} is too large", info.dtype, info.shape)
            })?;
            if end.checked_sub(start) != Some(bytes) {
                return Err(format!(
                    "tensor `{name}`: {} of shape {:?} takes {bytes} bytes, its offsets are \
                     {start}..{end}",
                    info.dtype, info.shape
                ));
            }
            if start != at {
                return Err(format!(
                    "tensor `{name}` starts at byte {start}, the one before ends at {at}"
                ));
            }
            at = end;
            if at as u64 > data_len {
                return Err(format!(
                    "truncated: tensor `{name}` ends at byte {at} of the data, which has \
                     {data_len}"
                ));
            }
        }
        if at as u64 != data_len {
            return Err(format!(
                "the tensors take {at} bytes, the file holds {data_len} bytes of data"
            ));
        }
        Ok(())
    }

    /// Length field and JSON, padded with spaces so that the data is aligned.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).expect("strings and integers serialise");
        json.resize(json.len().next_multiple_of(LENGTH_FIELD as usize), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut json);
        bytes
    }
}

/// Bytes of a tensor, `None` if they, or the product of its non-zero sizes,
/// do not fit memory: array libraries compute strides even of empty arrays.
pub(crate) fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let spread = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size.max(1)))?;
    let spread_bits = spread.checked_mul(dtype.bitsize())?;
    if spread_bits > isize::MAX as usize {
        return None;
    }
    let elements = if shape.contains(&0) { 0 } else { spread };
    let bits = elements * dtype.bitsize();
    bits.is_multiple_of(8).then_some(bits / 8)
}

impl Serialize for Header {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut order: Vec<_> = self.tensors.iter().collect();
        order.sort_by_key(|(_, info)| info.data_offsets);
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA_KEY, &self.metadata)?;
        }
        for (name, info) in order {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut header, mut metadata) = (Header::default(), None);
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                if metadata.replace(map.next_value()?).is_some() {
                    return Err(A::Error::custom(format_args!("`{name}` appears twice")));
                }
                continue;
            }
            let info: TensorInfo = map
                .next_value()
                .map_err(|e| A::Error::custom(format_args!("tensor `{name}`: {e}")))?;
            if header.tensors.contains_key(&name) {
                return Err(A::Error::custom(format_args!("tensor `{name}` appears twice")));
            }
            header.tensors.insert(name, info);
        }
        header.metadata = metadata.unwrap_or_default();
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str, data_len: u64) -> String {
        Header::parse(json.as_bytes(), data_len).unwrap_err()
    }

    #[test]
    fn errors_name_the_tensor() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a.b":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        assert_eq!(
            error(&one("F32", "[2]", "[0,4]"), 4),
            "tensor `a.b`: F32 of shape [2] takes 8 bytes, its offsets are 0..4"
        );
        assert_eq!(
            error(&one("F32", "[2]", "[8,0]"), 8),
            "tensor `a.b`: F32 of shape [2] takes 8 bytes, its offsets are 8..0"
        );
        assert_eq!(
            error(&one("F32", "[2]", "[0,8]"), 7),
            "truncated: tensor `a.b` ends at byte 8 of the data, which has 7"
        );
        assert_eq!(
            error(&one("F32", "[2]", "[0,8]"), 9),
            "the tensors take 8 bytes, the file holds 9 bytes of data"
        );
        assert_eq!(
            error(&one("F32", "[2]", "[4,12]"), 12),
            "tensor `a.b` starts at byte 4, the one before ends at 0"
        );
        assert!(error(&one("Q7", "[2]", "[0,8]"), 8).starts_with("header: tensor `a.b`: unknown"));
        assert!(error(&one("F4", "[3]", "[0,2]"), 2).contains("tensor `a.b`: F4 of shape [3]"));
    }

    #[test]
    fn sizes_near_the_integer_limits_are_refused() {
        for shape in [
            "[18446744073709551615]",
            "[4294967296,4294967296]",
            "[0,9223372036854775808,4]",
            "[9223372036854775808,4,0]",
            "[2305843009213693951]",
        ] {
            let json = format!(
                r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,18446744073709551615]}}}}"#
            );
            assert!(error(&json, u64::MAX).contains("is too large"), "{shape}");
        }
        // Each tensor is representable; together they wrap around.
        let huge = (isize::MAX as usize) / 8;
        let entries: Vec<_> = (0..20)
            .map(|i| {
                let (start, end) = (i * huge, (i + 1).min(15) * huge);
                format!(
                    r#""t{i}":{{"dtype":"U8","shape":[{huge}],"data_offsets":[{start},{end}]}}"#
                )
            })
            .take(15)
            .collect();
        assert!(
            error(&format!("{{{}}}", entries.join(",")), 100).contains("truncated: tensor `t0`")
        );
    }

    #[test]
    fn repeated_names_are_refused() {
        let entry = r#""w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
        let message = error(&format!("{{{entry},{entry}}}"), 0);
        assert!(message.starts_with("header: tensor `w` appears twice"), "{message}");
        let entry = r#""__metadata__":{"format":"pt"}"#;
        let message = error(&format!("{{{entry},{entry}}}"), 0);
        assert!(message.starts_with("header: `__metadata__` appears twice"), "{message}");
    }

    #[test]
    fn scalars_and_empty_tensors_have_sizes() {
        assert_eq!(byte_len(Dtype::F32, &[]), Some(4));
        assert_eq!(byte_len(Dtype::F64, &[3, 0, 5]), Some(0));
        assert_eq!(byte_len(Dtype::F4, &[3]), None);
    }
}
