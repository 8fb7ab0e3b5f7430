//! TensorBoard's event files: TFRecord frames around `Event` messages of
//! protocol buffers. Scalars need four fields of that schema, written here by
//! hand.

/// A table of CRC-32C (Castagnoli), a byte at a time.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// TFRecord stores checksums turned and shifted, so that those of data that
/// hold checksums are no trivial ones.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Adds a frame: length, its checksum, the bytes, theirs.
fn frame(out: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    out.extend(length);
    out.extend(masked(&length));
    out.extend(data);
    out.extend(masked(data));
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of bytes, text or an inner message.
fn bytes(out: &mut Vec<u8>, field: u8, data: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, data.len() as u64);
    out.extend(data);
}

/// `wall_time` (field 1) of an event, which [`start_of`] finds again.
fn wall_time(out: &mut Vec<u8>, seconds: f64) {
    out.push(1 << 3 | 1);
    out.extend(seconds.to_le_bytes());
}

/// The frame that a file begins with; `start` is when the run did, in seconds
/// since 1970.
pub(super) fn header(out: &mut Vec<u8>, start: f64) {
    let mut event = Vec::new();
    wall_time(&mut event, start);
    bytes(&mut event, 3, b"brain.Event:2");
    frame(out, &event);
}

/// The frame of some scalars of one step.
pub(super) fn scalars<'a>(
    out: &mut Vec<u8>,
    time: f64,
    step: u64,
    values: impl Iterator<Item = (&'a str, &'a str, f64)>,
) {
    let (mut event, mut summary) = (Vec::new(), Vec::new());
    for (set, name, value) in values {
        let mut of = Vec::new();
        bytes(&mut of, 1, format!("{set}/{name}").as_bytes());
        of.push(2 << 3 | 5);
        of.extend((value as f32).to_le_bytes());
        bytes(&mut summary, 1, &of);
    }
    wall_time(&mut event, time);
    event.push(2 << 3);
    varint(&mut event, step);
    bytes(&mut event, 5, &summary);
    frame(out, &event);
}

/// The start in the [`header`] of a file.
pub(super) fn start_of(file: &[u8]) -> Option<f64> {
    let time = file.get(12..21)?.strip_prefix(&[1 << 3 | 1])?;
    Some(f64::from_le_bytes(time.try_into().ok()?)).filter(|start| start.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4.
        for (data, crc) in [
            (vec![0; 32], 0x8a91_36aa),
            (vec![0xff; 32], 0x62a8_ab43),
            ((0..32).collect(), 0x46dd_794e),
            ((0..32).rev().collect(), 0x113f_db5c),
            (b"123456789".to_vec(), 0xe306_9283),
        ] {
            assert_eq!(crc32c(&data), crc);
        }
    }

    #[test]
    fn frames_are_those_that_tensorboard_writes() {
        let mut out = Vec::new();
        header(&mut out, 1.5);
        let wanted = "1800000000000000a37f4b22".to_owned() // length 24
            + "09000000000000f83f" // wall_time = 1.5
            + "1a0d627261696e2e4576656e743a32" // file_version
            + "2a28646c";
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&out), wanted);
        assert_eq!(start_of(&out), Some(1.5));
        assert_eq!(start_of(&out[..20]), None);

        let mut out = Vec::new();
        scalars(&mut out, 2.0, 300, [("train", "loss", 0.25)].into_iter());
        let message = "090000000000000040" // wall_time = 2
            .to_owned()
            + "10ac02" // step = 300
            + "2a13" // summary
            + "0a11" // value
            + "0a0a747261696e2f6c6f7373" // tag
            + "150000803e"; // simple_value = 0.25
        assert_eq!(hex(&out[12..out.len() - 4]), message);
        assert_eq!(out.len(), 8 + 4 + message.len() / 2 + 4);
    }
}
