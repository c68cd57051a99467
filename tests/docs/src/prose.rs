//! Lines and sentences.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// The longest line of prose, in columns.
pub const MAX_COLUMNS: usize = 100;

/// What Markdown is, for every check.
pub(crate) fn options() -> Options {
    Options::ENABLE_TABLES
}

/// The numbers of lines that are longer than [`MAX_COLUMNS`]; code, tables and words that cannot be
/// broken are exempt.
pub fn long_lines(text: &str) -> Vec<usize> {
    let exempt: Vec<_> = Parser::new_ext(text, options())
        .into_offset_iter()
        .filter_map(|(event, range)| {
            matches!(event, Event::Start(Tag::CodeBlock(_) | Tag::Table(_)) | Event::Html(_)).then_some(range)
        })
        .collect();
    let mut offset = 0;
    let mut long = Vec::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let is_exempt = exempt.iter().any(|range| range.start < offset + line.len() && offset < range.end);
        let breakable = line.trim().contains(' ');
        if line.trim_end().chars().count() > MAX_COLUMNS && breakable && !is_exempt {
            long.push(index + 1);
        }
        offset += line.len();
    }
    long
}

/// The sentences of a page: of paragraphs, lists and tables, not of headings and code. One word of
/// code counts as one word.
pub fn sentences(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block = String::new();
    let mut skipped = 0_usize;
    for event in Parser::new_ext(text, options()) {
        match event {
            Event::Start(Tag::CodeBlock(_) | Tag::Heading { .. }) => {
                blocks.push(std::mem::take(&mut block));
                skipped += 1;
            }
            Event::End(TagEnd::CodeBlock | TagEnd::Heading(_)) => skipped = skipped.saturating_sub(1),
            Event::Start(Tag::Paragraph | Tag::Item | Tag::TableCell)
            | Event::End(TagEnd::Paragraph | TagEnd::Item | TagEnd::TableCell) => {
                blocks.push(std::mem::take(&mut block));
            }
            Event::Text(text) if skipped == 0 => block.push_str(&text),
            // Whatever the code is, it is read as one word.
            Event::Code(_) if skipped == 0 => block.push_str("Code"),
            Event::SoftBreak | Event::HardBreak => block.push(' '),
            _ => {}
        }
    }
    blocks.push(block);
    blocks.iter().flat_map(|block| split(block)).filter(|sentence| words(sentence) >= 3).collect()
}

/// How many words the text has.
pub fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// The middle of the numbers of words of the sentences; 0 without sentences.
pub fn median(sentences: &[String]) -> usize {
    let mut lengths: Vec<usize> = sentences.iter().map(|sentence| words(sentence)).collect();
    lengths.sort_unstable();
    lengths.get(lengths.len() / 2).copied().unwrap_or_default()
}

fn split(block: &str) -> Vec<String> {
    let mut sentences = vec![String::new()];
    let mut words = block.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if let Some(sentence) = sentences.last_mut() {
            sentence.push_str(word);
            sentence.push(' ');
        }
        let ends = word.trim_end_matches([')', '"']).ends_with(['.', '!', '?', ':']);
        let begins = words.peek().is_some_and(|next| {
            next.trim_start_matches(['(', '"']).starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit())
        });
        if ends && begins {
            sentences.push(String::new());
        }
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_measured_and_code_and_tables_are_not() {
        let long = "word ".repeat(30);
        let text = format!("{long}\n\n```\n{long}\n```\n\n| a |\n| --- |\n| {long} |\n\nshort\n\n{long}\n");
        assert_eq!(long_lines(&text), [1, 13]);
        assert_eq!(long_lines(&format!("- a\n\n      {long}\n")), [0; 0], "code in a list");
    }

    #[test]
    fn sentences_end_where_readers_think_so() {
        let text = "# A heading of words\n\nOne two three. Four five `a b c`:\n\n- six seven (eight). Nine ten eleven\n";
        let found = sentences(text);
        let found: Vec<&str> = found.iter().map(|sentence| sentence.trim()).collect();
        assert_eq!(found, ["One two three.", "Four five Code:", "six seven (eight).", "Nine ten eleven"]);
        assert_eq!(median(&sentences(text)), 3);
    }
}
