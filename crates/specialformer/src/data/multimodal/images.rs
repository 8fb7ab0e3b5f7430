//! Images of digits.

use std::path::Path;

use specialformer_iarc_data::Split;

use crate::data::words::Words;
use crate::error::{Error, Result};

/// The UCI digits, packed as text; the file's head says how.
const DIGITS: &str = include_str!("digits.txt");
const BASE: u32 = 71;

/// Square images of one channel with their digits; pixels lie in [0, 1].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Images {
    pub(crate) side: usize,
    pixels: Vec<f32>,
    labels: Vec<u8>,
}

/// Every tenth image from the fourth on is for testing at 4 and 9, for
/// validation at 5: 20 % and 10 %. The rest is for training.
fn split_of(image: usize) -> Split {
    match image % 10 {
        4 | 9 => Split::Test,
        5 => Split::Validation,
        _ => Split::Train,
    }
}

impl Images {
    /// The 1,797 images of 8×8 that come with this crate.
    pub(crate) fn digits() -> Self {
        let head = DIGITS.lines().take_while(|line| line.starts_with('#'));
        let alphabet = head.last().expect("the file has a head").trim_start_matches("# ");
        let value = |c: char| alphabet.find(c).expect("a digit of base 71") as u32;
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for line in DIGITS.lines().filter(|line| !line.starts_with('#')) {
            let mut chars = line.chars();
            let label = chars.next().and_then(|c| c.to_digit(10)).expect("a digit first");
            labels.push(label as u8);
            let start = pixels.len();
            while let (Some(a), Some(b)) = (chars.next(), chars.next()) {
                let packed = value(a) * BASE + value(b);
                let three = [packed / 289, packed / 17 % 17, packed % 17];
                pixels.extend(three.map(|p| p as f32 / 16.0));
            }
            pixels.truncate(start + 64);
        }
        Self { side: 8, pixels, labels }
    }

    /// Images of a CSV file: on each line the pixels of a square image, 0 to
    /// 255, and its digit.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Io { path: name.clone(), source })?;
        let mut images = Self { side: 0, pixels: Vec::new(), labels: Vec::new() };
        for (i, line) in text.lines().enumerate() {
            let fail = |reason: String| {
                Err(Error::Record { path: name.clone(), line: i as u64 + 1, field: None, reason })
            };
            let mut values = Vec::with_capacity(line.len() / 2);
            for value in line.split(',') {
                match value.trim().parse::<f32>() {
                    Ok(value) if (0.0..=255.0).contains(&value) => values.push(value),
                    _ => return fail(format!("`{value}` is not a number from 0 to 255")),
                }
            }
            let label = values.pop().unwrap_or(f32::NAN);
            let side = (values.len() as f64).sqrt() as usize;
            if side == 0 || side * side != values.len() || (i > 0 && side != images.side) {
                let n = values.len();
                return fail(format!("{n} pixels are not a square image like the others"));
            }
            if label.fract() != 0.0 || !(0.0..10.0).contains(&label) {
                return fail(format!("the last number is {label}, not a digit"));
            }
            images.side = side;
            images.pixels.extend(values.iter().map(|p| p / 255.0));
            images.labels.push(label as u8);
        }
        if images.labels.len() < 20 {
            let reason = format!("{} images are too few to be split", images.labels.len());
            return Err(Error::Data { place: name, reason });
        }
        Ok(images)
    }

    /// The images of a split, by index.
    pub(crate) fn of(&self, split: Split) -> Vec<usize> {
        (0..self.labels.len()).filter(|&i| split_of(i) == split).collect()
    }

    pub(crate) fn label(&self, image: usize) -> u8 {
        self.labels[image]
    }

    pub(crate) fn pixels(&self, image: usize) -> &[f32] {
        let size = self.side * self.side;
        &self.pixels[image * size..(image + 1) * size]
    }
}

/// How an image is changed before it is shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Change {
    /// Chance of a move by one pixel (of eight), in each direction of the
    /// image's axes.
    pub(crate) translate: f64,
    /// Standard deviation of the noise on each pixel.
    pub(crate) noise: f64,
}

impl Change {
    pub(crate) const NONE: Self = Self { translate: 0.0, noise: 0.0 };

    /// The changed image; what is moved in is empty.
    pub(crate) fn apply(self, pixels: &[f32], side: usize, words: &mut Words) -> Vec<f32> {
        if self == Self::NONE {
            return pixels.to_vec();
        }
        let step = (side / 8).max(1) as isize;
        let mut offset = || {
            let moves = f64::from(words.below(1 << 20)) < self.translate * f64::from(1 << 20);
            match (moves, words.below(2)) {
                (false, _) => 0,
                (true, 0) => -step,
                (true, _) => step,
            }
        };
        let (down, right) = (offset(), offset());
        let at = |row: isize, column: isize| {
            let inside = |x: isize| (0..side as isize).contains(&x);
            match inside(row) && inside(column) {
                true => pixels[row as usize * side + column as usize],
                false => 0.0,
            }
        };
        let mut changed = Vec::with_capacity(pixels.len());
        for row in 0..side as isize {
            for column in 0..side as isize {
                changed.push(at(row - down, column - right));
            }
        }
        if self.noise > 0.0 {
            for pixel in &mut changed {
                *pixel = (*pixel + (self.noise * normal(words)) as f32).clamp(0.0, 1.0);
            }
        }
        changed
    }
}

/// About normal with deviation 1: twelve uniform numbers, summed.
pub(crate) fn normal(words: &mut Words) -> f64 {
    (0..12).map(|_| f64::from(words.word()) / 4_294_967_296.0).sum::<f64>() - 6.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_whole() {
        let images = Images::digits();
        assert_eq!((images.labels.len(), images.pixels.len()), (1797, 1797 * 64));
        let counts = [Split::Train, Split::Validation, Split::Test].map(|s| images.of(s).len());
        assert_eq!(counts, [1258, 180, 359]);
        // The first image and its sum, as the data set has them.
        let first: Vec<_> = images.pixels(0)[..8].iter().map(|p| p * 16.0).collect();
        assert_eq!(first, [0.0, 0.0, 5.0, 13.0, 9.0, 1.0, 0.0, 0.0]);
        assert_eq!(images.label(0), 0);
        let per_digit = |d| images.labels.iter().filter(|&&label| label == d).count();
        assert_eq!([0, 1, 2, 9].map(per_digit), [178, 182, 177, 180]);
    }

    #[test]
    fn a_file_that_is_no_image_is_named_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.csv");
        std::fs::write(&path, "0,0,0,255,3\n0,0,0,3\n").unwrap();
        let message = Images::load(&path).unwrap_err().to_string();
        assert!(message.ends_with("line 2: 3 pixels are not a square image like the others"));
    }

    #[test]
    fn moves_keep_ink_and_noise_stays_in_range() {
        let images = Images::digits();
        let mut words = Words::seeded(3);
        let moved = Change { translate: 1.0, noise: 0.0 }.apply(images.pixels(4), 8, &mut words);
        assert_ne!(moved, images.pixels(4));
        let noisy = Change { translate: 0.0, noise: 0.3 }.apply(images.pixels(4), 8, &mut words);
        assert!(noisy.iter().all(|p| (0.0..=1.0).contains(p)));
    }
}
