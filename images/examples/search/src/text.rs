//! From a text to its passages and words.

use denizen::prelude::*;
use unicode_segmentation::UnicodeSegmentation;

/// A name may have this many bytes: it becomes a key.
const LONGEST_NAME: usize = 200;

/// A longer word is no word that anybody looks for (encoded data, say), and would make a long key.
const LONGEST_WORD: usize = 64;

/// A passage ends after a line that brings it to this many bytes, so that an answer can be read.
const FULL_PASSAGE: usize = 1200;

/// The name of a text and what there is of it to read.
pub(crate) fn name_and_text<'a>(content_type: &str, body: &'a str) -> Result<(String, &'a str)> {
    let text = body.strip_prefix('\u{feff}').unwrap_or(body);
    let first_line = || text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
    let name = name_in(content_type).or_else(first_line).ok_or_else(|| bad_input("the text is empty"))?;
    Ok((shortened(&name, LONGEST_NAME).trim_end().to_owned(), text))
}

/// The parameter `name` of a content type.
fn name_in(content_type: &str) -> Option<String> {
    let parameters = content_type.split(';').skip(1);
    let (_, name) = parameters
        .filter_map(|p| p.trim().split_once('='))
        .find(|(key, _)| key.eq_ignore_ascii_case("name"))?;
    let name = name.trim_matches('"').trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// At most `bytes` bytes of the text, whole characters.
fn shortened(text: &str, bytes: usize) -> &str {
    let ends = text.char_indices().map(|(start, letter)| start + letter.len_utf8());
    &text[..ends.take_while(|end| *end <= bytes).last().unwrap_or(0)]
}

/// The paragraphs of a text with the number of their first line (from 1), long ones in pieces.
pub(crate) fn passages(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut rest = text;
    let mut next_line = 1;
    std::iter::from_fn(move || {
        loop {
            let (line, end) = (next_line, passage_end(rest)?);
            let (passage, after) = rest.split_at(end);
            next_line += passage.lines().map(|_| 1).sum::<u64>();
            rest = after;
            let trimmed = passage.trim();
            if !trimmed.is_empty() {
                return Some((line, trimmed));
            }
        }
    })
}

/// Where the first passage of the text ends: after a blank line, or when it is full. A blank line before it
/// is one of its own.
fn passage_end(text: &str) -> Option<usize> {
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        if line.trim().is_empty() {
            return Some(if end == 0 { line.len() } else { end });
        }
        end += line.len();
        if end >= FULL_PASSAGE {
            break;
        }
    }
    (end > 0).then_some(end)
}

/// The words of a text in small letters, by the word boundaries of Unicode (UAX #29).
pub(crate) fn words(text: &str) -> impl Iterator<Item = String> {
    text.unicode_words().map(str::to_lowercase).filter(|word| word.len() <= LONGEST_WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_comes_from_the_content_type_or_the_first_line() {
        fn name(content_type: &str, body: &str) -> Result<String> {
            name_and_text(content_type, body).map(|(name, _)| name)
        }
        assert_eq!(name("text/plain; charset=utf-8; name=\"a b.txt\"", "x").unwrap(), "a b.txt");
        assert_eq!(name("application/x-www-form-urlencoded", "\u{feff}\n  Title \n\nx").unwrap(), "Title");
        assert_eq!(name("text/plain; name=", "x").unwrap(), "x");
        assert_eq!(name("", &"é".repeat(300)).unwrap(), "é".repeat(100));
        assert_eq!(name("text/plain", " \n ").unwrap_err().kind(), ErrorKind::BadInput);
    }

    #[test]
    fn passages_are_paragraphs_with_their_lines() {
        let found: Vec<_> = passages("one\ntwo\n\n\n  three\r\n\r\nfour").collect();
        assert_eq!(found, [(1, "one\ntwo"), (5, "three"), (7, "four")]);
        assert_eq!(passages("\n\n").count(), 0);
        let long = format!("{}\n", "word ".repeat(100)).repeat(10);
        let lines: Vec<_> = passages(&long).map(|(line, _)| line).collect();
        assert_eq!(lines, [1, 4, 7, 10]);
    }

    #[test]
    fn words_are_unicode() {
        let found: Vec<_> = words("Don't STOP, naïve ÉCOLE — 北京 привет हिन्दी 3.14 <b>").collect();
        assert_eq!(found, ["don't", "stop", "naïve", "école", "北", "京", "привет", "हिन्दी", "3.14", "b"]);
        assert_eq!(words(&"x".repeat(65)).count(), 0);
    }
}
