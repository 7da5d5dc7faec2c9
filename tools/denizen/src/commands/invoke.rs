//! `denizen invoke`: one call, its reply on stdout as the function wrote it.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read},
    path::Path,
    time::Instant,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use denizen_client::{Call, Input, Reply, ReplyHead};
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
    let node = node(everywhere)?;
    let mut data = Data::open(typed.data.as_deref())?;
    let guess = data.content_type();
    let call = Call {
        app: &target.app,
        process: target.process.as_deref(),
        function: &typed.function,
        content_type: typed.content_type.as_deref().or(guess),
        deadline: typed.deadline,
        never_create: typed.create == Some(cli::Create::Never),
    };
    let started = Instant::now();
    let reply = node.call(&call, data.input())?;
    if terminal.json {
        return show_as_json(terminal, reply);
    }
    let head = reply.head.clone();
    if terminal.is_watched() && !typed.raw {
        show_escaped(terminal, reply)?
    } else {
        pass_on(terminal, reply)?
    }
    remark(terminal, &target, &head, started);
    Ok(())
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
fn pass_on(terminal: &Terminal, mut reply: Reply) -> Result<(), Failure> {
    each_piece(&mut reply, |bytes| terminal.raw(bytes))
}

/// Shows the reply as it arrives, to somebody whose terminal a function must not steer.
fn show_escaped(terminal: &Terminal, mut reply: Reply) -> Result<(), Failure> {
    let content_type = reply.head.content_type.clone();
    let readable = is_readable(content_type.as_deref());
    let (mut escaped, mut last) = (Escaped::default(), Some('\n'));
    each_piece(&mut reply, |bytes| {
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

fn each_piece(reply: &mut Reply, mut take: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut buf = vec![0; 64 << 10];
    let mut total = 0_u64;
    loop {
        match reply.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                take(&buf[..n])?;
                total += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broke_off(&reply.head, total, &error)),
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

fn show_as_json(terminal: &Terminal, mut reply: Reply) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    let read = reply.read_to_end(&mut bytes);
    let head = &reply.head;
    read.map_err(|error| broke_off(head, bytes.len() as u64, &error))?;
    let mut document = json!({
        "process": head.process, "invocation": head.invocation, "durability": head.durability,
        "commit": head.commit, "epoch": head.epoch, "content_type": head.content_type,
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
