//! `denizen state files`: what was captured of a process's `/state`. It is in no export.

use denizen_client::{Captured, CapturedFile};
use serde_json::{Value, json};

use super::{source::Source, transfer::Output};
use crate::{
    cli::{self, Everywhere},
    failure::Failure,
    target::ProcessTarget,
    terminal::{Cell, Escaped, Paint, Table, Terminal, printable},
    units,
};

pub(super) fn files(
    terminal: &Terminal,
    everywhere: &Everywhere,
    typed: &cli::StateFiles,
) -> Result<(), Failure> {
    let target = ProcessTarget::parse(&typed.target)?;
    let source = Source::open(terminal, everywhere, target.clone(), false)?;
    let path = typed.path.as_deref();
    let Some(path) = path.map(|path| path.strip_prefix("/state/").unwrap_or(path)) else {
        if typed.tar {
            if terminal.is_watched() && typed.output.is_none() {
                return Err(
                    Failure::usage("an archive is nothing for a terminal").remedy("name a file with -o")
                );
            }
            let mut out = Output::open(typed.output.as_deref())?;
            source.files_archive(|bytes| out.write(bytes))?;
            out.finish()?;
            return source.close();
        }
        let found = source.files()?;
        source.close()?;
        return list(terminal, &found);
    };
    let mut out = Output::open(typed.output.as_deref())?;
    // What a tenant keeps must not steer the terminal.
    let mut escaped = (terminal.is_watched() && typed.output.is_none()).then(Escaped::default);
    let found = source.file(path.as_bytes(), |bytes| match &mut escaped {
        Some(escaped) => out.write(escaped.add(bytes).as_bytes()),
        None => out.write(bytes),
    })?;
    if let Some(escaped) = escaped {
        out.write(escaped.end().as_bytes())?;
    }
    source.close()?;
    if !found {
        return Err(Failure::usage(format!("no file {path} was captured of {target}"))
            .remedy(format!("`denizen state files {target}` lists those that were")));
    }
    out.finish()
}

fn list(terminal: &Terminal, found: &[CapturedFile]) -> Result<(), Failure> {
    if terminal.json {
        let files: Vec<Value> = found.iter().map(described).collect();
        return terminal.document(&json!({ "files": files }));
    }
    if found.is_empty() {
        terminal.say("no files");
        return Ok(());
    }
    let mut table = Table::with_head(&["PATH", "MODE", "SIZE"]);
    for file in found {
        let path = printable(&String::from_utf8_lossy(&file.path));
        let row = match &file.kind {
            Captured::File { mode, bytes, .. } => (path, format!("{mode:o}"), units::bytes(*bytes)),
            Captured::Directory { mode } => (format!("{path}/"), format!("{mode:o}"), String::new()),
            _ => (path, String::new(), "damaged".to_owned()),
        };
        table.row(vec![Cell::plain(row.0).painted(Paint::bold), Cell::plain(row.1), Cell::number(row.2)]);
    }
    terminal.raw(table.render(terminal.out).as_bytes())
}

fn described(file: &CapturedFile) -> Value {
    let path = String::from_utf8_lossy(&file.path);
    match &file.kind {
        Captured::File { mode, bytes, modified_s } => {
            json!({ "path": path, "mode": mode, "bytes": bytes, "modified_s": modified_s })
        }
        Captured::Directory { mode } => json!({ "path": path, "mode": mode, "directory": true }),
        Captured::Damaged { why } => json!({ "path": path, "damaged": why }),
        _ => json!({ "path": path }),
    }
}
