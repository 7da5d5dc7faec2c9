//! `denizen logs`, and how a log line looks wherever one is shown.

use denizen_client::{LogLine, LogQuery, Node};

use super::node;
use crate::{
    cli::{self, Everywhere},
    failure::Failure,
    target::Target,
    terminal::{Paint, Terminal, printable},
};

pub(crate) fn run(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::Logs) -> Result<(), Failure> {
    let target = typed.target.as_deref().map(Target::parse).transpose()?;
    let node = node(everywhere)?;
    let query = LogQuery {
        app: target.as_ref().map(|target| target.app.as_str()),
        process: target.as_ref().and_then(|target| target.process.as_deref()),
        follow: typed.follow,
        tail: typed.tail,
    };
    let shown = follow(&node, &query, |line| match terminal.json {
        true => terminal.document(line),
        false => {
            terminal.answer(format!("{} {}", terminal.out.dim(clock(&line.at)), in_words(line, terminal.out)))
        }
    })?;
    if shown == 0 && !typed.follow {
        // A name that nobody has is a slip, and not one that has said nothing.
        match target {
            Some(Target { app, process: Some(process) }) => drop(node.process(&app, &process)?),
            Some(Target { app, process: None }) => drop(node.image_of(&app)?),
            None => {}
        }
    }
    if shown == 0 && !terminal.json && !typed.follow {
        let whose =
            typed.target.as_deref().map_or(String::new(), |target| format!(" of {}", printable(target)));
        terminal.say(format!("no lines{whose} yet: what a function prints while it is called comes here"));
    }
    Ok(())
}

/// Hands each line to `show`; tells how many there were.
pub(crate) fn follow(
    node: &Node,
    query: &LogQuery<'_>,
    mut show: impl FnMut(&LogLine) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut shown = 0;
    for line in node.logs(query)? {
        show(&line?)?;
        shown += 1;
    }
    Ok(shown)
}

/// `app/process invocation text`, marked where it is not the function's ordinary output.
pub(crate) fn in_words(line: &LogLine, paint: Paint) -> String {
    let who = paint.cyan(&printable(&format!("{}/{}", line.app, line.process)));
    let invocation = printable(line.invocation.as_deref().unwrap_or("-"));
    let text = printable(&line.text);
    let text = match line.stream.as_str() {
        "host" => paint.dim(&format!("[{text}]")),
        _ => text,
    };
    format!("{who} {} {text}", paint.dim(&invocation))
}

/// The time of day of an RFC 3339 time.
pub(crate) fn clock(at: &str) -> &str {
    at.split_once('T').map_or(at, |(_, time)| time)
}

#[cfg(test)]
mod tests {
    use super::{clock, in_words};
    use crate::terminal::Paint;

    #[test]
    fn a_line_says_who_and_what() {
        let line = r#"{"at":"2026-01-02T03:04:05.678Z","app":"a","process":"p","invocation":"i7","stream":"output","text":"x\u001b"}"#;
        let line = serde_json::from_str(line).unwrap();
        assert_eq!(in_words(&line, Paint::PLAIN), "a/p i7 x\\u{1b}");
        assert_eq!(clock(&line.at), "03:04:05.678Z");
    }
}
