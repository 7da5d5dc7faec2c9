//! A function that does with files what it is told, by `std::fs`, and one that tells what there is.

use denizen::prelude::*;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

const ROOT: &str = "/state";

/// Does what the lines say, in order: a verb, a path below `/state`, and what the verb needs.
#[function]
fn run(cx: &mut Context, script: &[u8]) -> Result<String> {
    for line in String::from_utf8_lossy(script).lines() {
        match line {
            "sync" => cx.sync_files()?,
            "fail" => return Err(failed("as it was told to")),
            "commit" => drop(cx.commit()?),
            line => step(cx, line).map_err(|error| failed(format!("{line}: {error}")))?,
        }
    }
    Ok(String::new())
}

/// The same with files alone, in a function that reads, and so beside others.
#[function]
fn scribble(_cx: &Context, script: &[u8]) -> Result<String> {
    scribbled(script)
}

/// And in one that may write beside others.
#[function(concurrent)]
fn scribble_beside(_cx: &mut Context, script: &[u8]) -> Result<String> {
    scribbled(script)
}

fn scribbled(script: &[u8]) -> Result<String> {
    for line in String::from_utf8_lossy(script).lines() {
        file_step(line).map_err(|error| failed(format!("{line}: {error}")))?;
    }
    Ok(String::new())
}

fn step(cx: &mut Context, line: &str) -> io::Result<()> {
    let Some(bytes) = line.strip_prefix("put x ") else { return file_step(line) };
    let bytes = noise(bytes.parse().map_err(io::Error::other)?);
    cx.put_bytes("object", &bytes).map_err(|error| io::Error::other(error.to_string()))
}

fn file_step(line: &str) -> io::Result<()> {
    let mut words = line.splitn(3, ' ');
    let (verb, path, rest) =
        (words.next().unwrap_or(""), at(words.next().unwrap_or("")), words.next().unwrap_or(""));
    match verb {
        "write" => fs::write(path, rest),
        "append" => fs::File::options().append(true).open(path)?.write_all(rest.as_bytes()),
        "fill" => fs::write(path, noise(rest.parse().map_err(io::Error::other)?)),
        "copy" => fs::copy(path, at(rest)).map(drop),
        "mkdir" => fs::create_dir_all(path),
        "rename" => fs::rename(path, at(rest)),
        "remove" => fs::remove_file(path),
        "rmdir" => fs::remove_dir_all(path),
        "mode" => {
            let mode = u32::from_str_radix(rest, 8).map_err(io::Error::other)?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
        }
        "link" => std::os::unix::fs::symlink(at(rest), path),
        "sparse" => fs::File::create(path)?.set_len(rest.parse().map_err(io::Error::other)?),
        _ => Err(io::Error::other("no such verb")),
    }
}

fn at(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

/// Bytes of which no part is like another.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = |_| {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(next).collect();
    bytes.truncate(len);
    bytes
}

/// A line for each file and directory, in order: path, mode, length, modified, and a short text as it is.
#[function]
fn list(_cx: &Context) -> Result<String> {
    let mut lines = Vec::new();
    walk(Path::new(ROOT), &mut lines).map_err(|error| failed(error.to_string()))?;
    lines.sort();
    Ok(lines.join("\n"))
}

fn walk(dir: &Path, lines: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let (path, metadata) =
            (entry.as_ref().map(fs::DirEntry::path), entry.as_ref().map(fs::DirEntry::metadata));
        let (Ok(path), Ok(metadata)) = (path, metadata) else { continue };
        let metadata = metadata?;
        let name = path.strip_prefix(ROOT).unwrap_or(&path).display().to_string();
        let mode = metadata.permissions().mode() & 0o777;
        if metadata.is_dir() {
            lines.push(format!("{name}/ {mode:o}"));
            walk(&path, lines)?;
            continue;
        }
        let bytes = fs::read(&path)?;
        let modified = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let sum = bytes.iter().fold(0_u32, |sum, byte| sum.rotate_left(5) ^ u32::from(*byte));
        let text =
            if bytes.len() < 64 { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() };
        lines.push(format!("{name} {mode:o} {} {} {sum:08x} {text}", bytes.len(), modified.as_nanos()));
    }
    Ok(())
}

denizen::export!(run, scribble, scribble_beside, list);
