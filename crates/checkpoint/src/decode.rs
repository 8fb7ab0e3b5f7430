//! Between the bytes of a file and numbers.

use std::io::{self, Read, Write};

use safetensors::Dtype;
use specialformer_tensor::{Element, Tensor};

use crate::storage::RawTensor;

/// Bytes moved at a time; a multiple of every element's size.
const CHUNK: usize = 1 << 16;

/// An integer type that can be stored beside tensors: `u8`, `i64`, `u64`.
/// Sealed.
pub trait Integer: Copy + Send + Sync + private::Integer + 'static {
    /// The type's name in Rust.
    const NAME: &'static str;
}

mod private {
    pub trait Integer {
        const DTYPE: safetensors::Dtype;
        const BYTES: usize;
        fn append(self, bytes: &mut Vec<u8>);
        fn read(bytes: &[u8]) -> Self;
    }
}

macro_rules! integer {
    ($($t:ident $dtype:ident),*) => {$(
        impl Integer for $t {
            const NAME: &'static str = stringify!($t);
        }
        impl private::Integer for $t {
            const DTYPE: Dtype = Dtype::$dtype;
            const BYTES: usize = size_of::<$t>();
            fn append(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
            fn read(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("cut to the type's size"))
            }
        }
    )*};
}

integer!(u8 U8, i64 I64, u64 U64);

/// Something that [`crate::TensorWriter`] holds until it is saved.
pub(crate) trait Payload: Send + Sync {
    fn dtype(&self) -> Dtype;
    fn shape(&self) -> Vec<usize>;
    fn write(&self, out: &mut dyn Write) -> io::Result<()>;
}

impl Payload for RawTensor {
    fn dtype(&self) -> Dtype {
        self.kind().to_dtype().expect("checked when it was added")
    }

    fn shape(&self) -> Vec<usize> {
        RawTensor::shape(self).to_vec()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self.bytes())
    }
}

impl<E: Element> Payload for Tensor<E> {
    fn dtype(&self) -> Dtype {
        if size_of::<E>() == 4 { Dtype::F32 } else { Dtype::F64 }
    }

    fn shape(&self) -> Vec<usize> {
        Tensor::shape(self).to_vec()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match Payload::dtype(self) {
            Dtype::F32 => write_chunks(out, self.as_slice(), |v, bytes| {
                bytes.extend_from_slice(&(v.to_f64() as f32).to_le_bytes());
            }),
            _ => write_chunks(out, self.as_slice(), |v, bytes| {
                bytes.extend_from_slice(&v.to_f64().to_le_bytes());
            }),
        }
    }
}

/// A list of integers with one axis.
pub(crate) struct IntegerList<I>(pub(crate) Vec<I>);

impl<I: Integer> Payload for IntegerList<I> {
    fn dtype(&self) -> Dtype {
        I::DTYPE
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.0.len()]
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        write_chunks(out, &self.0, |v, bytes| v.append(bytes))
    }
}

fn write_chunks<T: Copy>(
    out: &mut dyn Write,
    values: &[T],
    append: impl Fn(T, &mut Vec<u8>),
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(CHUNK);
    for chunk in values.chunks(CHUNK / size_of::<T>()) {
        bytes.clear();
        for &value in chunk {
            append(value, &mut bytes);
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Reads `count` elements of `width` bytes each. Memory is reserved before
/// anything is read, and too little of it is an error.
pub(crate) fn read_values<T>(
    source: &mut dyn Read,
    count: usize,
    width: usize,
    decode: impl Fn(&[u8]) -> T,
) -> io::Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|e| io::Error::new(io::ErrorKind::OutOfMemory, e))?;
    let mut bytes = vec![0; CHUNK.min(count * width)];
    let mut left = count;
    while left > 0 {
        let now = left.min(CHUNK / width);
        let filled = &mut bytes[..now * width];
        source.read_exact(filled)?;
        values.extend(filled.chunks_exact(width).map(&decode));
        left -= now;
    }
    Ok(values)
}

/// Reads floating-point elements as `E`; `None` if `dtype` is not one that
/// can be.
pub(crate) fn read_floats<E: Element>(
    source: &mut dyn Read,
    count: usize,
    dtype: Dtype,
) -> Option<io::Result<Vec<E>>> {
    let pair = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    let quad = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let widen = |v: f32| E::from_f64(f64::from(v));
    Some(match dtype {
        Dtype::F32 => read_values(source, count, 4, |b| widen(quad(b))),
        Dtype::F64 => read_values(source, count, 8, |b| {
            E::from_f64(f64::from_le_bytes(b.try_into().expect("cut to eight bytes")))
        }),
        Dtype::F16 => {
            read_values(source, count, 2, |b| widen(half::f16::from_bits(pair(b)).to_f32()))
        }
        Dtype::BF16 => {
            read_values(source, count, 2, |b| widen(f32::from_bits(u32::from(pair(b)) << 16)))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_has_the_value_of_its_definition() {
        for bits in 0..=u16::MAX {
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let exponent = i32::from(bits >> 10 & 31);
            let fraction = f64::from(bits & 1023);
            let wanted = sign
                * match exponent {
                    0 => fraction * 2f64.powi(-24),
                    31 if fraction == 0.0 => f64::INFINITY,
                    31 => f64::NAN,
                    _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
                };
            let read = read_floats(&mut &bits.to_le_bytes()[..], 1, Dtype::F16).unwrap();
            let got: f64 = read.unwrap()[0];
            assert!(got == wanted || (got.is_nan() && wanted.is_nan()), "{bits:#06x}: {got}");
            assert_eq!(got.is_sign_negative(), bits >> 15 == 1, "{bits:#06x}");
        }
    }
}
