//! `denizen image`: make one, send one, look into one.

mod removal;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use denizen_client::{DeployOptions, Deployed, Function, ImageInUse, ImageSummary, TypeLayout};
use denizen_image::{Image, ImageId, ImageStore, Manifest};
use serde_json::{Value, json};

use super::node;
use crate::{
    cli::{self, Everywhere},
    failure::Failure,
    layout,
    packing::Packed,
    place,
    terminal::{Cell, Paint, Table, Terminal},
    units,
};

pub(crate) fn run(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::Image) -> Result<(), Failure> {
    match typed {
        cli::Image::Build(typed) => build(terminal, typed),
        cli::Image::Deploy(typed) => deploy(terminal, everywhere, typed),
        cli::Image::Ls => list(terminal, everywhere),
        cli::Image::Inspect(typed) => inspect(terminal, everywhere, typed),
        cli::Image::Verify(typed) => verify(terminal, everywhere, typed),
        cli::Image::Rm(typed) => removal::rm(terminal, everywhere, typed),
        cli::Image::Prune => removal::prune(terminal, everywhere),
    }
}

fn build(terminal: &Terminal, typed: &cli::ImageBuild) -> Result<(), Failure> {
    let mut packed = Packed::from_source(terminal, &typed.source)?;
    let path = typed.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.dzi", packed.manifest.name)));
    packed.save(&path)?;
    if terminal.json {
        let name = &packed.manifest.name;
        return terminal
            .document(&json!({ "image": packed.image, "name": name, "bytes": packed.bytes, "path": path }));
    }
    terminal.answer(format!(
        "{}  {}  {}  {}",
        path.display(),
        packed.manifest.name,
        units::short_id(&packed.image),
        units::bytes(packed.bytes)
    ))
}

fn deploy(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::ImageDeploy) -> Result<(), Failure> {
    // First of all: without a node there is no point in building for a minute.
    let node = node(everywhere)?;
    node.info()?;
    let mut packed = Packed::from_source(terminal, &typed.source)?;
    let app = typed.app.clone().unwrap_or_else(|| packed.manifest.name.clone());
    let options = DeployOptions { replace_layout: typed.layout == Some(cli::Layout::Replace) };
    let deployed = match packed.deploy(&node, &app, options) {
        Ok(deployed) => deployed,
        Err(failure) => return Err(refused(terminal, everywhere, failure, &app, &typed.source.path)),
    };
    if terminal.json { terminal.document(&deployed) } else { terminal.answer(in_words(&deployed)) }
}

/// A changed layout is told with both layouts; everything else as it is.
fn refused(
    terminal: &Terminal,
    everywhere: &Everywhere,
    failure: Failure,
    app: &str,
    package: &Path,
) -> Failure {
    match failure.problem().filter(|problem| problem.name() == "layout-changed" && !terminal.json) {
        Some(problem) => {
            let denizen = place::this_command_on(everywhere.dir.as_deref());
            terminal.say(layout::explain(problem, app, package, &denizen, terminal.err));
            Failure::already_said(problem.blame)
        }
        None => failure,
    }
}

/// `counter runs image 0123456789ab: increment, read; 2 processes moved over`.
pub(crate) fn in_words(deployed: &Deployed) -> String {
    let names: Vec<&str> = deployed.functions.iter().map(|function| function.name.as_str()).collect();
    let moved = match deployed.moved {
        0 => String::new(),
        moved => format!("; {} moved over", units::count(moved, "process", "processes")),
    };
    format!("{} runs image {}: {}{moved}", deployed.app, units::short_id(&deployed.image), names.join(", "))
}

fn list(terminal: &Terminal, everywhere: &Everywhere) -> Result<(), Failure> {
    let images = node(everywhere)?.images()?;
    if terminal.json {
        return terminal.document(&json!({ "images": images }));
    }
    if images.is_empty() {
        terminal.say("no images yet: `denizen image deploy` in a package brings one");
        return Ok(());
    }
    let mut table = Table::with_head(&["IMAGE", "NAME", "SIZE", "USED BY"]);
    for image in &images {
        table.row(vec![
            Cell::plain(units::short_id(&image.image)).painted(Paint::bold),
            Cell::plain(&image.name),
            Cell::number(units::bytes(image.bytes)),
            Cell::plain(used_by(image)),
        ]);
    }
    terminal.raw(table.render(terminal.out).as_bytes())
}

/// Who would miss it.
fn used_by(image: &ImageSummary) -> String {
    let before = image.previous_of.iter().map(|app| format!("{app} (before)"));
    let mut users: Vec<String> = image.apps.iter().cloned().chain(before).collect();
    if users.is_empty() && image.processes > 0 {
        users.push(format!("{} at rest", units::count(image.processes, "process", "processes")));
    }
    if users.is_empty() { "-".to_owned() } else { users.join(", ") }
}

fn inspect(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::ImageInspect) -> Result<(), Failure> {
    let path = Path::new(&typed.image);
    if path.is_file() {
        let packed = Packed::from_archive(path)?;
        return show(terminal, &Shown::of_archive(&packed)?);
    }
    // An application's name may look like the beginning of an id; the application is what people mean.
    let node = node(everywhere)?;
    match node.image_of(&typed.image) {
        Ok(image) => show(terminal, &Shown::of_app(image)),
        Err(error) => match stored(everywhere, &typed.image)? {
            Some(image) => show(terminal, &Shown::of_stored(&image)?),
            None => Err(error.into()),
        },
    }
}

/// What `inspect` prints.
struct Shown {
    image: String,
    bytes: Option<u64>,
    manifest: Value,
    functions: Vec<Function>,
    types: Vec<TypeLayout>,
}

impl Shown {
    fn of_archive(packed: &Packed) -> Result<Shown, Failure> {
        Shown::of_parts(packed.image.clone(), packed.bytes, &packed.manifest)
    }

    fn of_stored(image: &Image) -> Result<Shown, Failure> {
        Shown::of_parts(image.id.to_string(), image.bytes, &image.manifest)
    }

    /// Functions and types are not in an image: the plugin declares them when it is loaded.
    fn of_parts(image: String, bytes: u64, manifest: &Manifest) -> Result<Shown, Failure> {
        let manifest = serde_json::to_value(manifest)
            .map_err(|error| Failure::host("the manifest cannot be put into JSON").because(&error))?;
        Ok(Shown { image, bytes: Some(bytes), manifest, functions: Vec::new(), types: Vec::new() })
    }

    fn of_app(image: ImageInUse) -> Shown {
        let ImageInUse { image, functions, types, manifest, .. } = image;
        Shown { image, bytes: None, manifest, functions, types }
    }
}

fn show(terminal: &Terminal, shown: &Shown) -> Result<(), Failure> {
    if terminal.json {
        return terminal.document(&json!({
            "image": shown.image, "bytes": shown.bytes, "manifest": shown.manifest,
            "functions": shown.functions, "types": shown.types,
        }));
    }
    let mut table = Table::without_head();
    let mut row = |label: &str, text: String| {
        table.row(vec![Cell::plain(label).painted(Paint::dim), Cell::plain(text)])
    };
    row("image", shown.image.clone());
    if let Some(bytes) = shown.bytes {
        row("size", units::bytes(bytes));
    }
    for (label, value) in flat(&shown.manifest) {
        row(&label, value);
    }
    for function in &shown.functions {
        row("function", described(&function.name, &function.doc));
    }
    for state in &shown.types {
        row("state", if state.layout.is_empty() { state.name.clone() } else { state.layout.clone() });
    }
    terminal.raw(table.render(terminal.out).as_bytes())
}

fn described(name: &str, doc: &str) -> String {
    // The first sentence; the rest is for the documentation.
    let paragraph: Vec<&str> = doc.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let paragraph = paragraph.join(" ");
    match paragraph.split_once(". ").map_or(paragraph.as_str(), |(sentence, _)| sentence) {
        "" => name.to_owned(),
        sentence => format!("{name}: {}", sentence.trim_end_matches('.')),
    }
}

/// A manifest as `section.key` and value, one level deep.
fn flat(manifest: &Value) -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> = Vec::new();
    // What an image is called comes before what it may do.
    rows.extend(manifest.get("name").map(|name| ("name".to_owned(), plain(name))));
    for (key, value) in manifest.as_object().into_iter().flatten() {
        match value {
            _ if key == "name" => {}
            Value::Object(section) => {
                rows.extend(section.iter().map(|(name, value)| in_units(&format!("{key}.{name}"), value)));
            }
            value => rows.push((key.clone(), plain(value))),
        }
    }
    rows
}

/// The unit moves from the name to the value.
fn in_units(name: &str, value: &Value) -> (String, String) {
    let unit = |suffix| name.strip_suffix(suffix).zip(value.as_u64());
    if let Some((name, count)) = unit("_bytes") {
        return (name.to_owned(), units::bytes(count));
    }
    if let Some((name, ms)) = unit("_ms") {
        return (name.to_owned(), units::duration(Duration::from_millis(ms)));
    }
    (name.to_owned(), plain(value))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The image in the node's store whose id begins with `beginning`, if exactly one does.
fn stored(everywhere: &Everywhere, beginning: &str) -> Result<Option<Image>, Failure> {
    if !removal::is_beginning(beginning) {
        return Ok(None);
    }
    let mut found = store(everywhere)?.list()?;
    found.retain(|image| image.id.to_string().starts_with(&beginning.to_ascii_lowercase()));
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop()),
        several => Err(Failure::usage(format!("{several} images begin with {beginning}"))
            .remedy("write more of its digits")),
    }
}

fn store(everywhere: &Everywhere) -> Result<ImageStore, Failure> {
    let images = place::node_directory(everywhere.dir.as_deref())?.join("images");
    if !images.is_dir() {
        return Err(Failure::usage(format!(
            "no node ever ran on {}",
            images.parent().unwrap_or(&images).display()
        ))
        .remedy("name its directory with --dir, or an archive (.dzi)"));
    }
    Ok(ImageStore::open(&images)?)
}

fn verify(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::ImageVerify) -> Result<(), Failure> {
    let mut bad = 0_u64;
    let mut total = 0_u64;
    let mut tell = |name: &str, outcome: Result<ImageId, String>| -> Result<(), Failure> {
        total += 1;
        bad += u64::from(outcome.is_err());
        tell_one(terminal, name, &outcome)
    };
    if typed.images.is_empty() {
        let store = store(everywhere)?;
        for image in store.list()? {
            tell(&image.manifest.name, outcome(store.verify(&image.id).map(|()| image.id)))?;
        }
    }
    for name in &typed.images {
        if Path::new(name).is_file() {
            let checked = Packed::from_archive(Path::new(name));
            let checked = checked
                .map_err(|failure| failure.in_short().to_owned())
                .and_then(|packed| outcome(packed.image.parse()));
            tell(name, checked)?;
            continue;
        }
        let id = meant(everywhere, name)?;
        tell(name, outcome(store(everywhere)?.verify(&id).map(|()| id)))?;
    }
    if bad > 0 {
        return Err(Failure::host(format!("{} checked, {bad} bad", units::count(total, "image", "images")))
            .remedy("build and deploy them again; a disk that changes bytes needs a look as well"));
    }
    Ok(())
}

/// The image of an application, if a node that runs has one of this name, or the one in the store whose id begins so.
fn meant(everywhere: &Everywhere, name: &str) -> Result<ImageId, Failure> {
    let of_app = node(everywhere).ok().and_then(|node| node.image_of(name).ok());
    if let Some(id) = of_app.and_then(|image| image.image.parse().ok()) {
        return Ok(id);
    }
    stored(everywhere, name)?.map(|image| image.id).ok_or_else(|| {
        Failure::usage(format!("there is no image {name}")).remedy(
            "`denizen image ls` lists them; or name an application, whose node has to run, or an archive (.dzi)",
        )
    })
}

fn outcome<E: std::error::Error>(checked: Result<ImageId, E>) -> Result<ImageId, String> {
    checked.map_err(|error| crate::failure::chain(&error))
}

fn tell_one(terminal: &Terminal, name: &str, outcome: &Result<ImageId, String>) -> Result<(), Failure> {
    if terminal.json {
        let (image, error) = match outcome {
            Ok(id) => (Some(id.to_string()), None),
            Err(what) => (None, Some(what)),
        };
        return terminal
            .document(&json!({ "name": name, "image": image, "ok": error.is_none(), "error": error }));
    }
    match outcome {
        Ok(id) => terminal.answer(format!("{}  {name}  every byte is as it was", id.short())),
        Err(what) => terminal.answer(format!("{}  {name}  {what}", terminal.out.red("BAD"))),
    }
}
