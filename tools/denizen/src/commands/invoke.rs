//! `denizen invoke`: one call, its reply on stdout as the function wrote it. In frames where the node has a data port, else over HTTP;
//! nobody is to see which but by the clock.

mod framed;

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read},
    path::Path,
    time::Instant,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use denizen_client::{Call, Input, Node, ReplyHead};
use denizen_protocol::TraceParent;
use serde_json::{Value, json};

use super::node;
use crate::{
    cli::{self, Everywhere},
    failure::Failure,
    target::Target,
    terminal::{Escaped, Terminal},
    units,
};

pub(crate) fn run(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::Invoke) -> Result<(), Failure> {
    let target = Target::parse(&typed.target)?;
    let mut data = Data::open(typed.data.as_deref())?;
    let asked = Asked { terminal, typed, target: &target, started: Instant::now() };
    let node = match typed.http.as_deref() {
        None => match framed::connect(everywhere, typed, &target)? {
            Some(connection) => return framed::call(connection, &asked, data),
            None => node(everywhere)?,
        },
        Some("") => node(everywhere)?,
        // Without the token of the node here, which is nobody else's business; a call needs none.
        Some(url) => Node::at(url)?,
    };
    let (guess, traceparent) = (data.content_type(), asked.traceparent().map(|trace| trace.to_string()));
    let call = Call {
        app: &target.app,
        process: target.process.as_deref(),
        function: &typed.function,
        content_type: typed.content_type.as_deref().or(guess),
        deadline: typed.deadline,
        never_create: typed.create == Some(cli::Create::Never),
        idempotency_key: typed.key.as_deref(),
        durability: typed.durability.map(cli::Durability::as_str),
        traceparent: traceparent.as_deref(),
    };
    asked.show(&mut node.call(&call, data.input())?)
}

/// What was asked for, and of whom.
struct Asked<'a> {
    terminal: &'a Terminal,
    typed: &'a cli::Invoke,
    target: &'a Target,
    started: Instant,
}

/// A reply that is arriving. An error while reading means that it broke off.
trait Answer: Read {
    /// What the node says of the call; at the end of the reply, all of it.
    fn head(&self) -> ReplyHead;
}

impl Answer for denizen_client::Reply {
    fn head(&self) -> ReplyHead {
        self.head.clone()
    }
}

impl Asked<'_> {
    /// The trace that the call belongs to. The standard says to go on without one that cannot be read.
    fn traceparent(&self) -> Option<TraceParent> {
        self.typed.traceparent.as_deref().and_then(TraceParent::from_text)
    }

    fn show(&self, answer: &mut dyn Answer) -> Result<(), Failure> {
        let terminal = self.terminal;
        if terminal.json {
            return show_as_json(terminal, answer);
        }
        if terminal.is_watched() && !self.typed.raw {
            show_escaped(terminal, answer)?;
        } else {
            pass_on(terminal, answer)?;
        }
        remark(terminal, self.target, &answer.head(), self.started);
        Ok(())
    }
}

/// The input, wherever it is.
enum Data {
    Text(Vec<u8>),
    File { file: File, len_bytes: Option<u64>, content_type: Option<&'static str> },
    Stdin(io::Stdin),
}

impl Data {
    fn open(typed: Option<&str>) -> Result<Data, Failure> {
        match typed {
            None => Ok(Data::Text(Vec::new())),
            Some("-") => Ok(Data::Stdin(io::stdin())),
            Some(text) => match text.strip_prefix('@') {
                Some(path) => Data::open_file(Path::new(path)),
                None => Ok(Data::Text(text.as_bytes().to_vec())),
            },
        }
    }

    fn open_file(path: &Path) -> Result<Data, Failure> {
        let opened = File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
        let (file, metadata) = opened.map_err(|error| {
            Failure::usage(format!("the input {} cannot be read", path.display()))
                .because(&error)
                .remedy("name a file after @, or - for stdin")
        })?;
        if metadata.is_dir() {
            return Err(Failure::usage(format!("the input {} is a directory", path.display()))
                .remedy("name a file after @"));
        }
        let len_bytes = metadata.is_file().then_some(metadata.len());
        Ok(Data::File { file, len_bytes, content_type: content_type_of(path) })
    }

    fn content_type(&self) -> Option<&'static str> {
        match self {
            Data::Text(text) if text.is_empty() => None,
            Data::Text(text) if is_json(text) => Some("application/json"),
            Data::Text(_) => Some("text/plain; charset=utf-8"),
            Data::File { content_type, .. } => *content_type,
            Data::Stdin(_) => None,
        }
    }

    /// How long it is, if that is known.
    fn len_bytes(&self) -> Option<u64> {
        match self {
            Data::Text(text) => u64::try_from(text.len()).ok(),
            Data::File { len_bytes, .. } => *len_bytes,
            Data::Stdin(_) => None,
        }
    }

    fn into_reader(self) -> Box<dyn Read> {
        match self {
            Data::Text(text) => Box::new(io::Cursor::new(text)),
            Data::File { file, .. } => Box::new(file),
            Data::Stdin(stdin) => Box::new(stdin),
        }
    }

    fn input(&mut self) -> Input<'_> {
        match self {
            Data::Text(text) => Input::Bytes(text),
            Data::File { file, len_bytes, .. } => Input::Stream { reader: file, len_bytes: *len_bytes },
            Data::Stdin(stdin) => Input::Stream { reader: stdin, len_bytes: None },
        }
    }
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}

fn content_type_of(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    Some(match extension.as_str() {
        "json" => "application/json",
        "txt" | "md" => "text/plain; charset=utf-8",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "pdf" => "application/pdf",
        _ => return None,
    })
}

/// Passes the reply on as it arrives.
fn pass_on(terminal: &Terminal, answer: &mut dyn Answer) -> Result<(), Failure> {
    each_piece(answer, |bytes| terminal.raw(bytes))
}

/// Shows the reply as it arrives, to somebody whose terminal a function must not steer.
fn show_escaped(terminal: &Terminal, answer: &mut dyn Answer) -> Result<(), Failure> {
    let content_type = answer.head().content_type;
    let readable = is_readable(content_type.as_deref());
    let (mut escaped, mut last) = (Escaped::default(), Some('\n'));
    each_piece(answer, |bytes| {
        if !readable && looks_binary(bytes) {
            let kind = content_type.as_deref().unwrap_or("binary");
            return Err(Failure::usage(format!("the reply is {kind}, which a terminal cannot show"))
                .remedy("send it to a file: add `> FILE`, or use --json; --raw writes it as it is"));
        }
        let shown = escaped.add(bytes);
        last = shown.chars().next_back().or(last);
        terminal.raw(shown.as_bytes())
    })?;
    let rest = escaped.end();
    let line_end = if rest.is_empty() && last == Some('\n') { "" } else { "\n" };
    terminal.raw(format!("{rest}{line_end}").as_bytes())
}

fn each_piece(
    answer: &mut dyn Answer,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut buf = vec![0; 64 << 10];
    let mut total = 0_u64;
    loop {
        match answer.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                take(&buf[..n])?;
                total += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broke_off(&answer.head(), total, &error)),
        }
    }
}

/// The head has said "success", so the function failed, or the node went, in mid-reply.
fn broke_off(head: &ReplyHead, after_bytes: u64, error: &io::Error) -> Failure {
    let name = head.process.as_deref().unwrap_or_default();
    Failure::function(format!("the reply broke off after {}", units::bytes(after_bytes)))
        .because(error)
        .remedy(format!("see why with `denizen logs`; the process is {name}"))
}

fn is_readable(content_type: Option<&str>) -> bool {
    content_type
        .is_some_and(|kind| kind.starts_with("text/") || kind.contains("json") || kind.contains("xml"))
}

fn looks_binary(bytes: &[u8]) -> bool {
    bytes.iter().take(1024).any(|&byte| byte < b' ' && !matches!(byte, b'\n' | b'\r' | b'\t' | 0x1b))
}

/// Who answered, for whoever watches; and for everybody when the node chose the process.
fn remark(terminal: &Terminal, target: &Target, head: &ReplyHead, started: Instant) {
    if target.process.is_some() && !io::stderr().is_terminal() {
        return;
    }
    let process = head.process.as_deref().unwrap_or("?");
    let mut parts = vec![format!("{}/{process}", target.app)];
    parts.extend(head.commit.map(|commit| format!("commit {commit}")));
    parts.extend(head.durability.as_ref().map(|durability| format!("survives the {}", survives(durability))));
    parts.extend(head.replayed.then(|| "remembered from an earlier call".to_owned()));
    parts.push(units::duration(started.elapsed()));
    terminal.say(terminal.err.dim(&parts.join(" · ")));
}

fn survives(durability: &str) -> &str {
    match durability {
        "process" => "sandbox and the agent",
        "node" => "node",
        other => other,
    }
}

fn show_as_json(terminal: &Terminal, answer: &mut dyn Answer) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    let read = answer.read_to_end(&mut bytes);
    let head = answer.head();
    read.map_err(|error| broke_off(&head, bytes.len() as u64, &error))?;
    let mut document = json!({
        "process": head.process, "invocation": head.invocation, "durability": head.durability,
        "commit": head.commit, "epoch": head.epoch, "content_type": head.content_type, "replayed": head.replayed,
    });
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(value) => document["reply"] = value,
        Err(_) => match String::from_utf8(bytes) {
            Ok(text) => document["reply"] = Value::String(text),
            Err(not_text) => {
                document["reply_base64"] = Value::String(BASE64_STANDARD.encode(not_text.as_bytes()))
            }
        },
    }
    terminal.document(&document)
}

#[cfg(test)]
mod tests {
    use super::{is_json, looks_binary};

    #[test]
    fn guesses() {
        assert!(is_json(b"{\"by\":2}") && is_json(b"2") && !is_json(b"two words"));
        assert!(looks_binary(b"\x89PNG\r\n\x1a\n") && !looks_binary("häuser\n".as_bytes()));
    }
}
