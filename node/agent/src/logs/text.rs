//! From bytes that a tenant prints to lines of text. Pure.

/// The longest line in bytes; a longer one becomes several.
const MAX_LINE: usize = 16 << 10;

/// Cuts a byte stream into lines. Holds at most one line.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    begun: Vec<u8>,
}

impl Splitter {
    /// Takes bytes and hands out each line that they complete, without its end. What is no UTF-8 is replaced.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(String)) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.begun.len();
            let window = bytes.get(..room.min(bytes.len())).unwrap_or_default();
            let (taken, whole) = match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (window.len(), window.len() == room),
            };
            let (head, rest) = bytes.split_at(taken);
            self.begun.extend_from_slice(head);
            bytes = rest;
            if whole {
                line(self.take());
            }
        }
    }

    /// The line that was begun, if one was: nothing more will come.
    pub(crate) fn finish(&mut self) -> Option<String> {
        (!self.begun.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let end = self.begun.strip_suffix(b"\n").unwrap_or(&self.begun);
        let text = String::from_utf8_lossy(end.strip_suffix(b"\r").unwrap_or(end)).into_owned();
        self.begun.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> (Vec<String>, Option<String>) {
        let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
        for piece in pieces {
            splitter.push(piece, |line| lines.push(line));
        }
        (lines, splitter.finish())
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let (lines, rest) = split(&[b"one\ntw", b"o\r\n\nthr", b"ee"]);
        assert_eq!(lines, ["one", "two", ""]);
        assert_eq!(rest.as_deref(), Some("three"));
    }

    #[test]
    fn a_line_without_end_is_cut_and_takes_no_more_memory() {
        let long = vec![b'x'; 3 * MAX_LINE + 5];
        let (lines, rest) = split(&[&long[..7], &long[7..]]);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE; 3]);
        assert_eq!(rest.map(|rest| rest.len()), Some(5));
        let exact = [vec![b'x'; MAX_LINE], b"\n".to_vec()].concat();
        assert_eq!(split(&[&exact]).0.len(), 2, "what fits exactly is cut before its end is seen");
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        assert_eq!(split(&[b"a\xffb\n"]).0, ["a\u{fffd}b"]);
    }
}
