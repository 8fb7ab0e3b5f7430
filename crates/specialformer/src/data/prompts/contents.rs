//! What each generated task asks about, and the answer to it.

use super::inventory::{
    ADJECTIVES, BLAME, DOMAIN_ENDS, GLAD, MONTHS, NAMES, NOUNS, PRAISE, REVIEWED, SORRY, SURNAMES,
    TOWNS, VERBS,
};
use crate::data::words::Words;

/// What a question is about: the texts that its phrasing has places for.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) parts: Vec<String>,
    pub(super) answer: String,
}

impl Content {
    fn new<const N: usize>(parts: [String; N], answer: impl Into<String>) -> Self {
        Self { parts: parts.into(), answer: answer.into() }
    }
}

fn one_of<'a>(words: &mut Words, list: &[&'a str]) -> &'a str {
    list[words.below(list.len() as u32) as usize]
}

/// Different words of a list.
fn some_of<'a>(words: &mut Words, list: &[&'a str], count: usize) -> Vec<&'a str> {
    let mut chosen: Vec<&str> = Vec::with_capacity(count);
    while chosen.len() < count {
        let word = one_of(words, list);
        if !chosen.contains(&word) {
            chosen.push(word);
        }
    }
    chosen
}

pub(super) fn json_field(words: &mut Words) -> Content {
    let fields = [
        ("name", format!("\"{}\"", one_of(words, &NAMES))),
        ("city", format!("\"{}\"", one_of(words, &TOWNS))),
        ("age", words.between(18, 90).to_string()),
        ("item", format!("\"{}\"", one_of(words, &NOUNS))),
        ("color", format!("\"{}\"", one_of(words, &ADJECTIVES[4..8]))),
        ("price", words.between(2, 400).to_string()),
    ];
    let count = words.between(3, 4);
    let mut order: Vec<usize> = (0..fields.len()).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, words.below(i as u32 + 1) as usize);
    }
    order.truncate(count);
    let (key, value) = &fields[order[words.below(count as u32) as usize]];
    let pairs = order.iter().map(|&i| format!("\"{}\": {}", fields[i].0, fields[i].1));
    let json = format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "));
    Content::new([(*key).to_owned(), json], value.trim_matches('"'))
}

pub(super) fn larger_number(words: &mut Words) -> Content {
    let a = words.between(10, 9999);
    let mut b = words.between(10, 9999);
    if a == b {
        b += 1;
    }
    Content::new([a.to_string(), b.to_string()], a.max(b).to_string())
}

pub(super) fn second_word(words: &mut Words) -> Content {
    let mut all = vec![one_of(words, &NAMES), one_of(words, &VERBS), "the"];
    all.push(one_of(words, &ADJECTIVES));
    all.push(one_of(words, &NOUNS));
    if words.below(2) == 0 {
        all.insert(0, one_of(words, &["Today", "Often", "Now", "Sometimes", "Later"]));
    }
    Content::new([all.join(" ")], all[1])
}

pub(super) fn two_digit_sum(words: &mut Words) -> Content {
    let (a, b) = (words.between(10, 99), words.between(10, 99));
    Content::new([a.to_string(), b.to_string()], (a + b).to_string())
}

pub(super) fn sentiment(words: &mut Words) -> Content {
    let good = words.below(2) == 0;
    let (adjectives, next) = if good { (&PRAISE, &GLAD) } else { (&BLAME, &SORRY) };
    let thing = one_of(words, &REVIEWED);
    let (adjective, next) = (one_of(words, adjectives), one_of(words, next));
    let review = format!("The {thing} was {adjective}, and {next}.");
    Content::new([review], if good { "positive" } else { "negative" })
}

pub(super) fn upper_case(words: &mut Words) -> Content {
    let text = format!("{} {}", one_of(words, &ADJECTIVES), one_of(words, &NOUNS));
    let answer = text.to_uppercase();
    Content::new([text], answer)
}

pub(super) fn iso_date(words: &mut Words) -> Content {
    let (day, month) = (words.between(1, 28), words.between(1, 12));
    let year = words.between(1900, 2099);
    let written = format!("{day} {} {year}", MONTHS[month - 1]);
    Content::new([written], format!("{year}-{month:02}-{day:02}"))
}

pub(super) fn last_letter(words: &mut Words) -> Content {
    let name = format!("{} {}", one_of(words, &NAMES), one_of(words, &SURNAMES));
    let last = name.chars().last().unwrap_or_default();
    Content::new([name], last.to_string())
}

pub(super) fn sort_words(words: &mut Words) -> Content {
    let mut chosen = some_of(words, &NOUNS, 3);
    let given = chosen.join(" ");
    chosen.sort_unstable();
    Content::new([given], chosen.join(" "))
}

pub(super) fn even_or_odd(words: &mut Words) -> Content {
    let number = words.between(10, 9999);
    let answer = if number.is_multiple_of(2) { "even" } else { "odd" };
    Content::new([number.to_string()], answer)
}

pub(super) fn email_domain(words: &mut Words) -> Content {
    let (name, end) = (one_of(words, &NAMES).to_lowercase(), one_of(words, &DOMAIN_ENDS));
    let domain = format!("{}{}.{end}", one_of(words, &ADJECTIVES), one_of(words, &NOUNS));
    Content::new([format!("{name}@{domain}")], domain)
}

pub(super) fn initials(words: &mut Words) -> Content {
    let names = [one_of(words, &NAMES), one_of(words, &NAMES), one_of(words, &SURNAMES)];
    let answer: String = names.iter().filter_map(|name| name.chars().next()).collect();
    Content::new([names.join(" ")], answer)
}

pub(super) fn count_items(words: &mut Words) -> Content {
    let count = words.between(2, 7);
    Content::new([some_of(words, &NOUNS, count).join(", ")], count.to_string())
}
