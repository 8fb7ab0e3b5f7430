//! The chapters of the guide and the README, with their code blocks, command
//! lines and links, so that tests can check all of them.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the guide's chapters.
pub fn guide_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src")
}

/// A Markdown file of the guide, or beside it in the repository.
#[derive(Debug, Clone)]
pub struct Chapter {
    /// Its path below [`guide_dir`] or the repository, with `/` between folders.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What is in it.
    pub text: String,
}

/// A fenced block of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeBlock {
    /// `chapter:line` of its first line, for messages.
    pub place: String,
    /// What stands after the fence, by commas: the language, then more.
    pub info: Vec<String>,
    /// The code, with files in place of `{{#include …}}`.
    pub text: String,
}

/// A command line of a `sh` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuideCommand {
    /// `chapter:line` of its block, for messages.
    pub place: String,
    /// The command and its arguments, without quotes.
    pub words: Vec<String>,
}

/// All Markdown files of the guide, by name.
///
/// # Panics
/// If a file cannot be read.
pub fn chapters() -> Vec<Chapter> {
    let mut found = Vec::new();
    collect(&guide_dir(), "", &mut found);
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<Chapter>) {
    let failed = |e: std::io::Error| -> ! { panic!("{}: {e}", folder.display()) };
    for entry in fs::read_dir(folder).unwrap_or_else(|e| failed(e)) {
        let path = entry.unwrap_or_else(|e| failed(e)).path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            collect(&path, &format!("{name}/"), found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(Chapter { name, text: read(&path), path });
        }
    }
}

/// The Markdown files of the repository's first folder, among them the README,
/// by name.
///
/// # Panics
/// If a file cannot be read.
pub fn root_documents() -> Vec<Chapter> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let entries = fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| Chapter {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            text: read(&path),
            path,
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

impl Chapter {
    /// Its blocks of code, in order.
    ///
    /// # Panics
    /// If a fence is not closed, or an included file cannot be read.
    pub fn code_blocks(&self) -> Vec<CodeBlock> {
        let (mut blocks, mut open): (_, Option<CodeBlock>) = (Vec::new(), None);
        for (number, line) in self.text.lines().enumerate() {
            match (line.strip_prefix("```"), &mut open) {
                (Some(info), None) => {
                    open = Some(CodeBlock {
                        place: format!("{}:{}", self.name, number + 2),
                        info: info.split(',').map(|word| word.trim().to_owned()).collect(),
                        text: String::new(),
                    });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => {
                    let include = line.strip_prefix("{{#include ");
                    match include.and_then(|rest| rest.strip_suffix("}}")) {
                        Some(file) => block.text += &read(&self.path.with_file_name(file)),
                        None => block.text = format!("{}{line}\n", block.text),
                    }
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a fence is not closed", self.name);
        blocks
    }

    /// The targets of its links, without those in blocks of code.
    pub fn links(&self) -> Vec<String> {
        let mut links = Vec::new();
        let mut code = false;
        for line in self.text.lines() {
            code ^= line.starts_with("```");
            if !code {
                let targets = line.split("](").skip(1);
                links.extend(targets.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())));
            }
        }
        links
    }

    /// The names by which links reach its headings.
    pub fn anchors(&self) -> Vec<String> {
        let mut code = false;
        let headings = self.text.lines().filter(|line| {
            code ^= line.starts_with("```");
            !code && line.starts_with('#')
        });
        headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
    }
}

/// A heading as mdBook names it: lower case, `-` for blanks, letters, digits,
/// `-` and `_` alone.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter_map(|c| match c {
        c if c.is_whitespace() => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    });
    kept.collect::<String>().to_lowercase()
}

/// All blocks of code of the guide and of [`root_documents`] in a language.
///
/// # Panics
/// As [`chapters`] and [`Chapter::code_blocks`].
pub fn guide_blocks(language: &str) -> Vec<CodeBlock> {
    let files = root_documents().into_iter().chain(chapters());
    let blocks = files.flat_map(|chapter| chapter.code_blocks());
    blocks.filter(|block| block.info[0] == language).collect()
}

/// All command lines of the `sh` blocks that [`guide_blocks`] finds, those in `$(…)` and behind
/// pipes by themselves. Settings of variables before a command and redirections
/// are left out.
///
/// # Panics
/// As [`guide_blocks`], or for a quote that is not closed.
pub fn guide_commands() -> Vec<GuideCommand> {
    let of_block = |block: CodeBlock| {
        let place = block.place;
        let commands = commands(&block.text).into_iter();
        commands.map(move |words| GuideCommand { place: place.clone(), words })
    };
    guide_blocks("sh").into_iter().flat_map(of_block).collect()
}

/// The commands of a script: as much of a shell's grammar as the guide needs.
fn commands(script: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words) = (Vec::new(), Vec::new());
    let mut word: Option<String> = None;
    let mut chars = script.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' if word.is_none() => while chars.next_if(|&c| c != '\n').is_some() {},
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some(end) if end == c => break,
                        Some(inside) => word.push(inside),
                        None => panic!("a quote is not closed: {word}"),
                    }
                }
            }
            '\\' if chars.next_if_eq(&'\n').is_some() => words.extend(word.take()),
            '$' if chars.next_if_eq(&'(').is_some() => {
                let mut inside = String::new();
                while let Some(c) = chars.next_if(|&c| c != ')') {
                    inside.push(c);
                }
                assert!(chars.next().is_some(), "$({inside} is not closed");
                commands.extend(self::commands(&inside));
                word.get_or_insert_default().push_str("OUTPUT");
            }
            '\n' | ';' | '|' | '&' => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    commands.push(words);
    for words in &mut commands {
        let sets = |word: &String| {
            let name = word.split_once('=').map_or("", |(name, _)| name);
            !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        };
        let set = words.iter().take_while(|word| sets(word)).count();
        words.drain(..set);
        if let Some(at) = words.iter().position(|word| word == ">" || word == "<") {
            words.truncate(at);
        }
    }
    commands.retain(|words| !words.is_empty());
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_apart() {
        let script = "A=$(x fetch 'a b')   # a comment\n\
                      B=1 y --flag \"q 'r'\" $A | z - > out\n\
                      y a \\\n    b && w\n";
        let wanted = [
            &["x", "fetch", "a b"][..],
            &["y", "--flag", "q 'r'", "$A"],
            &["z", "-"],
            &["y", "a", "b"],
            &["w"],
        ];
        assert_eq!(commands(script), wanted);
    }

    #[test]
    fn blocks_links_and_anchors_are_found() {
        let text =
            "# One: a *b*\n[x](y.md#z) and [w](v)\n```sh,more\n[no](link)\n# no heading\n```\n";
        let chapter = Chapter { name: "c.md".into(), path: "c.md".into(), text: text.into() };
        assert_eq!(chapter.links(), ["y.md#z", "v"]);
        assert_eq!(chapter.anchors(), ["one-a-b"]);
        let block = CodeBlock {
            place: "c.md:4".into(),
            info: vec!["sh".into(), "more".into()],
            text: "[no](link)\n# no heading\n".into(),
        };
        assert_eq!(chapter.code_blocks(), [block]);
    }

    #[test]
    fn links_lead_somewhere_and_all_chapters_are_listed() {
        let chapters = chapters();
        let find = |path: &Path| {
            let path = path.canonicalize().ok()?;
            chapters.iter().find(|chapter| chapter.path.canonicalize().is_ok_and(|p| p == path))
        };
        let mut listed = vec!["SUMMARY.md".to_owned()];
        for chapter in &chapters {
            for link in chapter.links() {
                let place = format!("{}: {link}", chapter.name);
                if link.starts_with("https://") {
                    continue;
                }
                let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
                let target = match file {
                    "" => chapter,
                    file => find(&chapter.path.with_file_name(file)).expect(&place),
                };
                assert!(
                    anchor.is_empty() || target.anchors().iter().any(|a| a == anchor),
                    "{place}"
                );
                if chapter.name == "SUMMARY.md" {
                    listed.push(target.name.clone());
                }
            }
        }
        listed.sort();
        let names: Vec<_> = chapters.iter().map(|chapter| chapter.name.clone()).collect();
        assert_eq!(listed, names);
    }

    #[test]
    fn links_of_root_documents_lead_somewhere() {
        let documents = root_documents();
        assert!(documents.iter().any(|document| document.name == "README.md"));
        for document in &documents {
            for link in document.links() {
                if link.starts_with("https://") {
                    continue;
                }
                let place = format!("{}: {link}", document.name);
                let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
                let path = match file {
                    "" => document.path.clone(),
                    file => document.path.with_file_name(file),
                };
                assert!(path.exists(), "{place}");
                if !anchor.is_empty() {
                    let target = Chapter { name: link.clone(), text: read(&path), path };
                    assert!(target.anchors().iter().any(|a| a == anchor), "{place}");
                }
            }
        }
    }
}
