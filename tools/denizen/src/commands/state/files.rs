//! `denizen state files`: what was captured of a process's `/state`, read from its log while no node runs. It is in no export.

use denizen_engine::FileKind;
use serde_json::{Value, json};

use super::source::{CapturedFile, Source};
use crate::{
    cli::{self, Everywhere},
    failure::Failure,
    target::ProcessTarget,
    terminal::{Cell, Paint, Table, Terminal, printable},
    units,
};

pub(super) fn files(
    terminal: &Terminal,
    everywhere: &Everywhere,
    typed: &cli::StateFiles,
) -> Result<(), Failure> {
    let target = ProcessTarget::parse(&typed.target)?;
    let source = Source::open(terminal, everywhere, target.clone(), false)?;
    match &typed.path {
        None => {
            let found = source.files()?;
            source.close()?;
            list(terminal, &found)
        }
        Some(path) => {
            let path = path.strip_prefix("/state/").unwrap_or(path);
            let found = source.file(path.as_bytes())?;
            source.close()?;
            let bytes = found.ok_or_else(|| {
                Failure::usage(format!("no file {path} was captured of {target}"))
                    .remedy(format!("`denizen state files {target}` lists those that were"))
            })?;
            terminal.raw(&bytes)
        }
    }
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
        let row = match &file.entry {
            Ok(entry) => match entry.kind {
                FileKind::File { len, .. } => (path, format!("{:o}", entry.mode), units::bytes(len)),
                _ => (format!("{path}/"), format!("{:o}", entry.mode), String::new()),
            },
            Err(_) => (path, String::new(), "damaged".to_owned()),
        };
        table.row(vec![Cell::plain(row.0).painted(Paint::bold), Cell::plain(row.1), Cell::number(row.2)]);
    }
    terminal.raw(table.render(terminal.out).as_bytes())
}

fn described(file: &CapturedFile) -> Value {
    let path = String::from_utf8_lossy(&file.path);
    match &file.entry {
        Ok(entry) => match entry.kind {
            FileKind::File { len, .. } => json!({ "path": path, "mode": entry.mode, "bytes": len }),
            _ => json!({ "path": path, "mode": entry.mode, "directory": true }),
        },
        Err(error) => json!({ "path": path, "damaged": error.to_string() }),
    }
}
