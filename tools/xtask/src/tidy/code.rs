//! Rust text with comments and strings left out: just enough of a lexer to know which words are code.

/// Numbers of the lines (from 1) on which `word` stands as code.
pub(crate) fn lines_with_word(text: &str, word: &str) -> Vec<usize> {
    let bare = without_comments_and_strings(text);
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(bare.lines()) {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        if line.split(|c| !is_name(c)).any(|found| found == word) {
            lines.push(number);
        }
    }
    lines
}

/// The same lines, with blanks for comments, strings and characters.
fn without_comments_and_strings(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| raw_string(rest)).or_else(|| quoted(rest));
        match skipped {
            Some(length) => {
                // Lines must keep their numbers.
                out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
                rest = &rest[length..];
            }
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

/// Length of the comment that `text` begins with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let here = &text.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    Some(text.len())
}

/// Length of the raw string (`r"…"`, `r#"…"#`, with `b` or `c` before) that `text` begins with.
fn raw_string(text: &str) -> Option<usize> {
    let prefix = text.len() - text.trim_start_matches(['b', 'c']).len();
    let after_r = text[prefix.min(1)..].strip_prefix('r')?;
    let hashes = after_r.len() - after_r.trim_start_matches('#').len();
    let body = after_r[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(text.len() - body.len() + length)
}

/// Length of the string or character that `text` begins with; a lifetime is neither.
fn quoted(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    if quote == '\'' {
        let mut inner = text[1..].chars();
        let is_char = matches!((inner.next(), inner.next()), (Some('\\'), _) | (Some(_), Some('\'')));
        if !is_char {
            return None;
        }
    }
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::lines_with_word;

    #[test]
    fn only_code_counts() {
        let text = r###"
let a = "unsafe \" unsafe"; // unsafe
/* unsafe /* unsafe */ unsafe */ let b = 'x';
let c = r#"unsafe " unsafe"#;
fn d<'a>(e: &'a str) -> &'a str { e } // '
let f = '"'; unsafe { g() }
let h = b"unsafe"; let unsafe_name = br"unsafe";
#[unsafe(no_mangle)]
"###;
        assert_eq!(lines_with_word(text, "unsafe"), [6, 8]);
    }
}
