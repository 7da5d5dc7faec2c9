//! `PUT /v1/apps/{app}/image`: an archive comes in, is checked, loaded once, and becomes what the application runs.
//!
//! Until the last step nothing changes for anybody, whatever is wrong with the image. The order then: the scheduler's record (durable), the
//! executors' tables, and the processes that are active, each of which finishes its calls first and runs the new image at its next.

use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Seek, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use denizen_image::{Declared, Image, ImageId, ImportLimits};
use denizen_sched::{AppName, ImageRecord};
use denizen_wire::{Declarations, PayloadKind, StateSummary};
use hyper::StatusCode;
use hyper::body::{Body, Bytes, Incoming};
use serde_json::{Value, json};

use super::{Answer, json_answer};
use crate::deployed::{Deployed, changed_layouts};
use crate::executor;
use crate::home::Home;
use crate::images::{self, Held, store_problem};
use crate::problem::{Kind, Problem};
use crate::process::files::io_problem;
use crate::process::{Process, discard, probe, refused_claim};

/// The largest archive, in bytes: the largest image, and what tar adds.
const ARCHIVE_BYTES: u64 = (1 << 30) + (16 << 20);
/// How long a sender may pause.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that are gathered before they are written.
const WRITE_TOGETHER: usize = 256 << 10;

/// Answers a deployment.
pub(super) async fn deploy(
    home: &Rc<Home>,
    app: &str,
    replace: bool,
    body: Incoming,
) -> Result<Answer, Problem> {
    let name = AppName::new(app).map_err(|error| Problem::new(Kind::BadName, error.to_string()))?;
    let (image, held) = import(home, body).await?;
    let manifest_json = serde_json::to_value(&image.manifest).unwrap_or(Value::Null);
    let unknown = Declarations {
        abi_version: 0,
        functions: vec![],
        types: vec![],
        state: StateSummary::default(),
        recovery: None,
        connections: false,
    };
    let untried = Deployed::new(image.id, image.manifest.clone(), manifest_json, unknown);
    let tried = match probe(&home.node, app, &untried).await {
        Ok(declarations) => check(&image, declarations),
        Err(problem) => Err(problem),
    };
    let switched = match tried {
        Ok(declarations) => {
            let deployed =
                Arc::new(Deployed::new(image.id, image.manifest, untried.manifest_json, declarations));
            switch(home, &name, &deployed, replace, held).await.map(|moved| (deployed, moved))
        }
        Err(problem) => {
            drop(held);
            Err(problem)
        }
    };
    let (deployed, moved) = switched.inspect_err(|_| remove_unused(home, image.id))?;
    let document = json!({
        "app": name,
        "image": deployed.id,
        "functions": deployed.functions_json(),
        "types": deployed.types_json(),
        "moved": moved,
    });
    Ok(json_answer(StatusCode::OK, &document))
}

/// Receives the archive and puts it into the store.
async fn import(home: &Rc<Home>, mut body: Incoming) -> Result<(Image, Held), Problem> {
    let file = match receive(home, &mut body).await {
        Ok(file) => file,
        Err(problem) => {
            // Who is still sending must get to read why.
            discard(body);
            return Err(problem);
        }
    };
    let node = &home.node;
    let (store, holds) = (node.images.clone(), node.held_images.clone());
    let work = move || {
        let mut file = file;
        let rewound = file.rewind();
        rewound.map_err(|error| io_problem("an archive cannot be read", store.dir(), &error))?;
        let image = store.import_archive(io::BufReader::new(file), &ImportLimits::default());
        let image = image.map_err(|error| store_problem(&error))?;
        let held = holds.hold(image.id);
        Ok((image, held))
    };
    node.importing
        .run(work)
        .await
        .unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())))
}

/// Receives the archive into a file.
async fn receive(home: &Rc<Home>, body: &mut Incoming) -> Result<File, Problem> {
    let too_large = || {
        Problem::new(Kind::BodyTooLarge, format!("the archive is over the limit of {} bytes", ARCHIVE_BYTES))
    };
    if body.size_hint().lower() > ARCHIVE_BYTES {
        return Err(too_large());
    }
    let node = &home.node;
    let mut file = node
        .dir
        .incoming()
        .map_err(|error| io_problem("an archive cannot be received", node.dir.root(), &error))?;
    let (mut total, mut pieces) = (0_u64, Vec::new());
    loop {
        let next = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
        let stalled =
            || Problem::new(Kind::BadRequest, format!("nothing came of the archive for {PATIENCE:?}"));
        let Some(frame) = executor::within(PATIENCE, next).await.ok_or_else(stalled)? else { break };
        let broken = |error| Problem::new(Kind::BadRequest, "the archive broke off").cause(error);
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        total += data.len() as u64;
        if total > ARCHIVE_BYTES {
            return Err(too_large());
        }
        pieces.push(data);
        if pieces.iter().map(Bytes::len).sum::<usize>() >= WRITE_TOGETHER {
            file = write(home, file, std::mem::take(&mut pieces)).await?;
        }
    }
    write(home, file, pieces).await
}

/// Writes on a side thread; the body is read on only when that is done.
async fn write(home: &Home, mut file: File, pieces: Vec<Bytes>) -> Result<File, Problem> {
    let path = home.node.dir.root().to_owned();
    let work = move || match pieces.iter().try_for_each(|piece| file.write_all(piece)) {
        Ok(()) => Ok(file),
        Err(error) => Err(io_problem("an archive cannot be received", &path, &error)),
    };
    home.node
        .importing
        .run(work)
        .await
        .unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())))
}

/// Checks what the plugin declares against the manifest.
fn check(image: &Image, declarations: Declarations) -> Result<Declarations, Problem> {
    let declared: Vec<_> = declarations
        .functions
        .iter()
        .map(|function| Declared {
            name: &function.name,
            streams_input: function.input == PayloadKind::Stream,
        })
        .collect();
    for function in &declarations.functions {
        let bad = |error: denizen_sched::NameError| {
            Problem::new(Kind::InitFailed, format!("the plugin declares a function: {error}"))
        };
        denizen_sched::names::check(&function.name).map_err(bad)?;
    }
    image
        .manifest
        .check_functions(&declared)
        .map_err(|error| Problem::new(Kind::BadImage, error.to_string()))?;
    Ok(declarations)
}

/// Makes it the application's image. One deployment of an application at a time.
async fn switch(
    home: &Rc<Home>,
    name: &AppName,
    image: &Arc<Deployed>,
    replace: bool,
    held: Held,
) -> Result<usize, Problem> {
    let executor = home.node.home_of(name.as_str(), "");
    let (name, image) = (name.clone(), Arc::clone(image));
    // It goes on to its end even if the caller goes away: half a switch would leave executors with different images.
    let (tell, told) = futures_channel::oneshot::channel();
    let job = move |home: Rc<Home>| {
        executor::spawn(async move {
            let switched = switch_here(&home, &name, &image, replace).await;
            // The records name it now, or it was refused.
            drop(held);
            let _ = tell.send(switched);
        });
    };
    let stopping = || Problem::new(Kind::ShuttingDown, "the node is shutting down");
    home.node.send_job(executor, Box::new(job)).map_err(|()| stopping())?;
    told.await.map_err(|_| stopping())?
}

async fn switch_here(
    home: &Rc<Home>,
    name: &AppName,
    image: &Arc<Deployed>,
    replace: bool,
) -> Result<usize, Problem> {
    let before = home.app(name.as_str()).ok();
    let _turn = match &before {
        Some(app) => Some(app.deployments.take().await),
        None => None,
    };
    if let Some(app) = &before
        && !replace
    {
        check_layouts(home, name, &app.image(), image).await?;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let record = ImageRecord {
        image: image.id,
        manifest: image.manifest_json.clone(),
        declarations: json!(image.declarations),
        created_at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    };
    home.node.scheduler.deploy(name.clone(), record).await.map_err(|error| refused_claim(&error))?;
    let (name, image) = (name.clone(), Arc::clone(image));
    let change = move |home: Rc<Home>| async move {
        let app = home.deploy(&name, Arc::clone(&image));
        // Each executor: until here it may have had the old one loaded.
        home.node.pool.replaced(&name);
        move_all(&home, &app.processes(), &image).await
    };
    Ok(home.everywhere(change).await?.into_iter().sum())
}

/// Moves active processes over, all at once: each waits for its own calls only.
async fn move_all(home: &Rc<Home>, processes: &[Rc<Process>], image: &Deployed) -> usize {
    let mut moves: Vec<_> =
        processes.iter().map(|process| Box::pin(process.move_to(home, image.id))).collect();
    let mut moved = 0;
    // Each transition runs in a task of its own, so that waiting for one does not hold up another.
    poll_fn(|cx| {
        moves.retain_mut(|one| match one.as_mut().poll(cx) {
            std::task::Poll::Ready(done) => {
                moved += usize::from(done.unwrap_or(false));
                false
            }
            std::task::Poll::Pending => true,
        });
        if moves.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    moved
}

/// # Errors
/// `layout-changed` where processes may hold objects that the new image cannot read.
async fn check_layouts(home: &Home, name: &AppName, old: &Deployed, new: &Deployed) -> Result<(), Problem> {
    let changed = changed_layouts(&old.declarations, &new.declarations);
    if changed.is_empty() {
        return Ok(());
    }
    let processes =
        home.node.scheduler.list(Some(name.clone())).await.map_err(|error| refused_claim(&error))?;
    if processes.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = changed.iter().map(|(name, ..)| name.as_str()).collect();
    let text = format!(
        "{} changed its layout, and {} processes may hold objects of the old one",
        names.join(", "),
        processes.len()
    );
    let layouts: Vec<_> =
        changed.iter().map(|(name, old, new)| json!({"name": name, "old": old, "new": new})).collect();
    let remedies = json!([
        "lead from the old layout to the new one: keep the old type beside it, and write a `#[migrate]` function",
        "keep the old layout, and put what is new into a type of its own",
        "give the changed type another name: objects of the old one stay as they are",
        format!("delete the processes: `denizen rm {name}/PROCESS`"),
        "deploy with `Denizen-Layout: replace`: objects of the old layout answer `state-type-changed` until deleted or overwritten",
    ]);
    Err(Problem::new(Kind::LayoutChanged, text).with("layouts", json!(layouts)).with("remedies", remedies))
}

/// Removes an image that was refused, unless some record names it from before.
fn remove_unused(home: &Rc<Home>, image: ImageId) {
    let home = Rc::clone(home);
    executor::spawn(async move {
        if let Err(problem) = images::prune(&home.node, Some(image)).await {
            tracing::warn!("a refused image stays in the store: {problem}");
        }
    });
}
