//! Questions about images and series: `specialformer generate RUN --image`.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use image::{ImageFormat, ImageReader};
use serde_json::json;
use specialformer::{DataConfig, MultimodalPredictor, RunConfig};

use super::published;
use crate::args::text::{ModelArgs, PictureArgs};
use crate::failure::Failure;
use crate::terminal::say;

/// True if there is something to look at, or the model is of a run on several
/// modalities.
pub(crate) fn wanted(args: &PictureArgs, model: &Path) -> bool {
    let config = || RunConfig::load(model.join("config.toml"));
    let multimodal = || config().is_ok_and(|c| matches!(c.data, DataConfig::Multimodal(_)));
    !args.image.is_empty() || !args.series.is_empty() || multimodal()
}

/// Answers the prompts, each about all images or the series.
pub(crate) fn run(
    args: &PictureArgs,
    of: &ModelArgs,
    prompts: &[String],
    as_json: bool,
    quiet: bool,
) -> Result<(), Failure> {
    if !of.model.join("config.toml").is_file() {
        let what = "is no run: --image and --series are for runs on several modalities";
        return Err(Failure::input(format!("{}: {what}", of.model.display())));
    }
    let (config, model) = published::load_at(&of.model, of.width)?;
    let model = MultimodalPredictor::new(&config, model)?;
    let read = |path: &PathBuf| pixels(path, model.side(), args.invert);
    let images = args.image.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let answer = |prompt: &String| model.answer(&images, &args.series, prompt);
    let answers = prompts.iter().map(answer).collect::<Result<Vec<_>, _>>()?;
    if as_json {
        println!("{:#}", json!({ "texts": answers }));
        return Ok(());
    }
    for answer in &answers {
        println!("{}", answer.text);
        if quiet {
            continue;
        }
        say!("probability {:.1} %", 100.0 * answer.probability);
        for (path, patches) in args.image.iter().zip(&answer.patches) {
            let share: f64 = patches.iter().sum();
            say!("{}: {:.1} % of the attention", path.display(), 100.0 * share);
            let side = (patches.len() as f64).sqrt() as usize;
            for row in patches.chunks(side.max(1)) {
                let row: Vec<_> = row.iter().map(|p| format!("{:5.1}", 100.0 * p)).collect();
                say!("  {}", row.join(" "));
            }
        }
    }
    Ok(())
}

/// The pixels of a PNG file in [0, 1], averaged to `side` by `side`.
pub(crate) fn pixels(path: &Path, side: usize, invert: bool) -> Result<Vec<f32>, Failure> {
    let fail = |what: String| Failure::input(format!("{}: {what}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| fail(error.to_string()))?;
    let reader = ImageReader::with_format(BufReader::new(file), ImageFormat::Png);
    let image = reader
        .decode()
        .map_err(|error| fail(format!("not a PNG image that can be read: {error}")))?
        .to_luma32f();
    let (width, height) = (image.width() as usize, image.height() as usize);
    if width != height || width == 0 || !width.is_multiple_of(side) {
        return Err(fail(format!(
            "{width}×{height} pixels, the model reads {side}×{side} or a multiple of it"
        )));
    }
    let step = width / side;
    let mut pixels = vec![0.0; side * side];
    for (x, y, pixel) in image.enumerate_pixels() {
        pixels[(y as usize / step) * side + x as usize / step] += pixel.0[0] / (step * step) as f32;
    }
    if invert {
        pixels.iter_mut().for_each(|pixel| *pixel = 1.0 - *pixel);
    }
    Ok(pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_averaged_and_bad_ones_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.png");
        let gray: Vec<u8> = (0..16).map(|i| u8::from(i < 8 && i % 4 < 2) * 255).collect();
        image::save_buffer(&path, &gray, 4, 4, image::ExtendedColorType::L8).unwrap();
        assert_eq!(pixels(&path, 2, false).unwrap(), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(pixels(&path, 2, true).unwrap(), [0.0, 1.0, 1.0, 1.0]);
        let message = pixels(&path, 3, false).unwrap_err().to_string();
        assert!(message.ends_with("4×4 pixels, the model reads 3×3 or a multiple of it"));
        std::fs::write(&path, "PNG").unwrap();
        let message = pixels(&path, 2, false).unwrap_err().to_string();
        assert!(message.contains("not a PNG image that can be read"), "{message}");
    }
}
