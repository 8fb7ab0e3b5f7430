//! Generated parts of hand-written files, between two marker comments.

use std::path::Path;

use specialformer_checkpoint::atomic_write;

use crate::shell::Result;

/// Replaces what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
pub(crate) fn replace(text: &str, name: &str, content: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name}:begin -->"), format!("<!-- {name}:end -->"));
    let missing = |marker: &str| format!("no line `{marker}`");
    let from = text.find(&begin).ok_or_else(|| missing(&begin))? + begin.len();
    let to = from + text[from..].find(&end).ok_or_else(|| missing(&end))?;
    Ok(format!("{}\n{}\n{}", &text[..from], content.trim_end(), &text[to..]))
}

/// [`replace`] in a file. One that does not exist starts as `otherwise`.
pub(crate) fn replace_in(path: &Path, name: &str, content: &str, otherwise: &str) -> Result<()> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !otherwise.is_empty() => {
            otherwise.to_owned()
        }
        text => text.map_err(|e| format!("{}: {e}", path.display()))?,
    };
    let text = replace(&text, name, content).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(atomic_write(path, |file| file.write_all(text.as_bytes()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marked_part_changes() {
        let text = "a\n<!-- x:begin -->\nold\nold\n<!-- x:end -->\nb\n";
        let wanted = "a\n<!-- x:begin -->\nnew\n<!-- x:end -->\nb\n";
        assert_eq!(replace(text, "x", "new\n").unwrap(), wanted);
        assert_eq!(replace(wanted, "x", "new").unwrap(), wanted);
        let error = replace(text, "y", "new").unwrap_err().to_string();
        assert_eq!(error, "no line `<!-- y:begin -->`");
        let reversed = "<!-- x:end --> <!-- x:begin -->";
        assert!(replace(reversed, "x", "new").is_err());
    }

    #[test]
    fn a_missing_file_starts_from_its_frame() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("RESULTS.md");
        assert!(replace_in(&path, "x", "1", "").is_err());
        for content in ["1", "2"] {
            replace_in(&path, "x", content, "# T\n<!-- x:begin -->\n<!-- x:end -->\n").unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text, format!("# T\n<!-- x:begin -->\n{content}\n<!-- x:end -->\n"));
        }
    }
}
